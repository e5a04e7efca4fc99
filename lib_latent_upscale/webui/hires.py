"""The hires pass: the upscalers in its dropdown, and the network in place of interpolation.

The host knows latent upscalers as a dictionary from names to modes of `interpolate`. Ours are
entries of it like its own, so that every place that lists or checks upscalers has them. Two
methods of the txt2img job are wrapped: `init`, to find the model and to refuse what cannot work
before the first pass, and `sample_hr_pass`, to hand it a latent that upscales itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..cache import Model
from ..spaces import LatentSpace
from . import host, job, models
from .hooked import HookedLatent, unhook
from .wrapping import unwrap, wrap

# What a caller gets that interpolates without meeting the hook, and what tells ours from others'.
_OURS = "latent_upscale"
_MODE = {"mode": "bicubic", "antialias": True, _OURS: True}

_MODEL = "latent_upscale_model"  # the attribute of a job that holds its model


def labels() -> list[str]:
    """The names of our upscalers, in the order of the dropdown."""
    return [models.NEURAL, *(entry.label for entry in models.entries())]


def install() -> None:
    """Adds the upscalers and wraps the txt2img job. Twice is the same as once."""
    from modules import processing

    refresh()
    wrap(processing.StableDiffusionProcessingTxt2Img, "init", _init)
    wrap(processing.StableDiffusionProcessingTxt2Img, "sample_hr_pass", _sample_hr_pass)


def uninstall() -> None:
    """Undoes `install`, and forgets the models that are loaded."""
    from modules import processing

    _take_out()
    unwrap(processing.StableDiffusionProcessingTxt2Img, "init")
    unwrap(processing.StableDiffusionProcessingTxt2Img, "sample_hr_pass")
    models.forget()


def refresh() -> None:
    """Brings the host's list of latent upscalers up to date with the files that are there."""
    from modules import shared

    _take_out()
    models.refresh(taken=shared.latent_upscale_modes)
    for label in labels():
        shared.latent_upscale_modes[label] = dict(_MODE)


def _take_out() -> None:
    from modules import shared

    modes = shared.latent_upscale_modes
    for name in [name for name, mode in modes.items() if mode.get(_OURS)]:
        del modes[name]


def _init(original: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    # X/Y/Z runs copies of one job, with the attributes and the one infotext of the run before.
    setattr(p, _MODEL, None)
    job.forget_infotext(p)
    if p.enable_hr and _is_new(p.hr_upscaler):
        refresh()
    result = original(p, *args, **kwargs)
    if p.enable_hr and p.hr_upscaler in labels():
        setattr(p, _MODEL, _prepare(p))
    return result


def _prepare(p: Any) -> Model:
    """The model for a job; raises as `job.prepare` does, and for a hires checkpoint that does not
    fit, while nothing is lost yet."""
    entry = job.choose(p.hr_upscaler, p.sd_model)
    hires_checkpoint = getattr(p, "hr_checkpoint_info", None)
    if hires_checkpoint is not None:
        _check_hires_space(entry.space, host.checkpoint_file_space(hires_checkpoint.filename))
    return job.prepare(p, p.hr_upscaler, entry)


def _is_new(label: Any) -> bool:
    """Whether it may be a file that was put there since the list was made."""
    from modules import shared

    return str(label).startswith("Latent (") and label not in shared.latent_upscale_modes


def _check_hires_space(space: LatentSpace, other: LatentSpace | None) -> None:
    """Raises `ValueError` where the hires checkpoint has another latent space than the first."""
    if other is not None and other is not space:
        raise ValueError(
            f"the hires checkpoint is for {other.label} latents, that of the first pass for "
            f"{space.label}: no latent can go from one to the other. Choose a hires checkpoint "
            f"for {space.label}, or an upscaler that works on the picture."
        )


def _sample_hr_pass(original: Any, p: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
    model: Model | None = getattr(p, _MODEL, None)
    if model is None or not isinstance(samples, Tensor):
        return original(p, samples, *args, **kwargs)
    if getattr(p, "hr_checkpoint_info", None) is not None:  # loaded by now, if it could not be read
        _check_hires_space(model.upscaler.space, host.checkpoint_space(p.sd_model))
    hooked = HookedLatent.of(samples, partial(job.upscale, model))
    return unhook(original(p, hooked, *args, **kwargs))  # an interrupted job returns its argument
