"""Wrapping a method of a class of the WebUI, and undoing it beside other extensions' wrappers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# What is wrapped is written down on the class itself, because it outlives this module: after
# "Reload UI" a new import of this extension must find what the last one left.
_WRAPPED = "_latent_upscale_wrapped"


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Makes `owner.name(...)` call `around(original, ...)`, in place of an earlier wrap of ours."""
    unwrap(owner, name)
    original = getattr(owner, name)
    ours = SimpleNamespace(original=original, around=around)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if ours.around is None:  # undone, but another extension's wrapper still calls it
            return original(*args, **kwargs)
        return ours.around(original, *args, **kwargs)

    ours.wrapper = wrapper
    setattr(owner, name, wrapper)
    setattr(owner, _WRAPPED, {**getattr(owner, _WRAPPED, {}), name: ours})


def unwrap(owner: type, name: str) -> None:
    """Undoes `wrap`; does nothing where nothing is wrapped.

    Where another extension has put its wrapper over ours, that one stays and ours falls silent.
    """
    wrapped = dict(getattr(owner, _WRAPPED, {}))
    ours = wrapped.pop(name, None)
    setattr(owner, _WRAPPED, wrapped)
    if ours is None:
        return
    ours.around = None
    if getattr(owner, name) is ours.wrapper:
        setattr(owner, name, ours.original)
