"""img2img's "Just resize (latent upscale)" by a network, when the settings say so.

The host encodes the picture, keeps the latent as `init_latent` and interpolates that, bilinearly
and always. So for the length of the job's `init` its first `init_latent` is one that upscales
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from . import host, job, settings
from .hooked import Answer, HookedLatent, unhook
from .wrapping import unwrap, wrap

_JUST_RESIZE_LATENT = 3  # the host's number for it
_STOPPED = "latent_upscale_stopped"  # the attribute of a job whose network was skipped


def install() -> None:
    """Wraps the img2img job. Twice is the same as once."""
    from modules import processing

    wrap(processing.StableDiffusionProcessingImg2Img, "init", _init)
    wrap(processing.StableDiffusionProcessingImg2Img, "sample", _sample)


def uninstall() -> None:
    """Undoes `install`."""
    from modules import processing

    unwrap(processing.StableDiffusionProcessingImg2Img, "init")
    unwrap(processing.StableDiffusionProcessingImg2Img, "sample")


def _init(original: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    setattr(p, _STOPPED, False)
    job.forget_infotext(p)
    p.extra_generation_params.pop(settings.IMG2IMG_INFOTEXT, None)
    label = settings.img2img()
    if label is None or p.resize_mode != _JUST_RESIZE_LATENT:
        return original(p, *args, **kwargs)
    model = job.prepare(p, label, job.choose(label, p.sd_model))
    p.extra_generation_params[settings.IMG2IMG_INFOTEXT] = label
    upscale = partial(job.upscale, model, stopped=lambda: setattr(p, _STOPPED, True))
    with _first_value_hooked(p, "init_latent", upscale):
        return original(p, *args, **kwargs)


def _sample(original: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    # The hosts forget a Skip where a picture begins, and this one's came before that.
    if getattr(p, _STOPPED, False):
        host.skip()
    return original(p, *args, **kwargs)


@contextmanager
def _first_value_hooked(owner: Any, name: str, answer: Answer) -> Iterator[None]:
    """Gives the first tensor that is assigned to `owner.name` the hook.

    By a class of its own for this one object, for as long as the block runs.
    """
    own_class = type(owner)
    values = vars(owner)
    seen = False

    def assign(self: Any, value: Any) -> None:
        nonlocal seen
        if isinstance(value, Tensor) and not seen:
            seen, value = True, HookedLatent.of(value, answer)
        values[name] = value

    hooked = property(lambda self: values.get(name, getattr(own_class, name, None)), assign)
    owner.__class__ = type(own_class.__name__, (own_class,), {name: hooked})
    try:
        yield
    finally:
        owner.__class__ = own_class
        if name in values:
            values[name] = unhook(values[name])
