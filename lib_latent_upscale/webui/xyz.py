"""An axis of the X/Y/Z plot for the precision, beside the host's own one for the upscaler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from . import settings

_LABEL = "[Latent upscale] precision"


def install() -> None:
    """Adds the axis, where there is an X/Y/Z plot. Twice is the same as once."""
    uninstall()
    for plot in _plots():
        axis = plot.AxisOption(
            _LABEL, str, _apply, confirm=_confirm, choices=lambda: list(_CHOICES)
        )
        plot.axis_options.append(axis)


def uninstall() -> None:
    """Undoes `install`."""
    for plot in _plots():
        plot.axis_options[:] = [axis for axis in plot.axis_options if axis.label != _LABEL]


_CHOICES = (settings.AUTOMATIC, *settings.PRECISIONS)


def _apply(p: Any, value: str, _values: Any) -> None:
    # A dictionary of its own: the copies of a job that the plot runs share theirs.
    p.override_settings = {**p.override_settings, settings.PRECISION_KEY: value}


def _confirm(_p: Any, values: list[str]) -> None:
    for value in values:
        if value not in _CHOICES:
            raise RuntimeError(f"{_LABEL} has no {value}; choose from {', '.join(_CHOICES)}")


def _plots() -> Iterator[Any]:
    """The host's script, as a module; hosts load their scripts before extensions'."""
    from modules import scripts

    for script in getattr(scripts, "scripts_data", ()):
        module = getattr(script, "module", None)
        named = PurePath(str(getattr(script, "path", ""))).name == "xyz_grid.py"
        if named and hasattr(module, "AxisOption") and hasattr(module, "axis_options"):
            yield module
