"""The extension's settings. Their keys begin with `latent_upscale_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..catalog import CATALOG, DEFAULTS, Entry
from ..preferences import FETCH_KEY, FETCH_ON_USE_KEY, FOLDER_KEY, MIRROR_KEY, SETS, Preferences
from ..spaces import SPACES, LatentSpace
from . import models

_SECTION = ("latent_upscale", "Latent upscale")


def default_key(space: LatentSpace) -> str:
    """The setting that holds the label of the model for "Latent (neural)" in that space."""
    return f"latent_upscale_default_{space.id}"


def default_infotext(space: LatentSpace) -> str:
    """The infotext entry that carries that setting; such names take no dot."""
    return f"Latent neural {space.id.upper()}"


def add(refresh: Callable[[], None]) -> None:
    """Adds the settings, or leaves them as they are where they have been added.

    refresh: looks for hand-placed models anew.
    """
    import gradio as gr

    for space in SPACES.values():
        default = DEFAULTS[space.id]
        if default is None:
            continue  # there is no model to choose from yet
        _add(
            default_key(space),
            CATALOG[default].label,
            f'Model for "Latent (neural)" with {space.label} checkpoints',
            "used when Latent (neural) is chosen as the hires upscaler",
            component=gr.Dropdown,
            component_args=_choices(space),
            refresh=refresh,
            infotext=default_infotext(space),
        )
    # What a request by the API must not change: where files come from and go to.
    own = Preferences()
    _add(
        FETCH_KEY,
        own.fetch,
        "Models to download when the WebUI starts",
        "recommended: SwinFIR for SD1.5 and for SDXL, 29 MB each; all: 2 GB",
        component=gr.Radio,
        component_args={"choices": list(SETS)},
        restrict_api=True,
    )
    _add(
        FETCH_ON_USE_KEY,
        own.fetch_on_use,
        "Download a model when it is first used",
        "else a job that wants one that is not there ends before its first pass, and says so",
        restrict_api=True,
    )
    _add(
        FOLDER_KEY,
        own.folder,
        "Folder of models",
        "downloads go there, and files put there show in the dropdown; empty: this extension's "
        "models/ only",
        restrict_api=True,
    )
    _add(
        MIRROR_KEY,
        own.mirror,
        "Mirror to download from",
        "an address that is tried first; {url} in it stands for the published address, {file} "
        "for the file's name",
        restrict_api=True,
    )


def _add(key: str, default: Any, label: str, info: str, **how: Any) -> None:
    from modules import shared

    option = shared.OptionInfo(default, label, section=_SECTION, **how).info(info)
    shared.opts.add_option(key, option)


def _choices(space: LatentSpace) -> Callable[[], dict[str, Any]]:
    return lambda: {"choices": [entry.label for entry in models.entries(space)]}


def default_entry(space: LatentSpace) -> Entry | None:
    """The model that "Latent (neural)" stands for in that space: the user's, else ours."""
    from modules import shared

    label = getattr(shared.opts, default_key(space), None)
    entry = models.by_label(label) if isinstance(label, str) else None
    if entry is not None and entry.space is space:
        return entry
    default = DEFAULTS[space.id]
    return CATALOG[default] if default is not None else None
