"""What every job with a network has: the model for it, its infotext, and the upscaling itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cache import Model
from ..catalog import Entry
from ..clock import now
from ..inference import Interrupted
from ..resample import resample
from ..spaces import SPACES
from ..weights import files
from . import host, models, settings

_HASH = "Latent upscaler hash"  # of the file, in the infotext


def choose(label: str, checkpoint: Any) -> Entry:
    """The model that a label means for a loaded checkpoint.

    Raises `ValueError` for one that does not fit, unless the settings say to take the default.
    """
    space = host.checkpoint_space(checkpoint)
    if space is None:
        raise ValueError(
            f"{label}: this checkpoint's latents are of a kind that no latent upscaler here is "
            "made for. Choose another upscaler."
        )
    default = settings.default_entry(space)
    entry = default if label == models.NEURAL else models.by_label(label)
    if entry is not None and entry.space is space:
        return entry
    if entry is not None and settings.takes_default():
        print(f"Latent upscale: {label} is for {entry.space.label} latents; taking {default.label}")
        return default
    fitting = ", ".join(entry.label for entry in models.entries(space))
    which = f"{label} is for {entry.space.label} latents, but" if entry else f"{label}:"
    raise ValueError(
        f"{which} this checkpoint needs one for {space.label}. Choose one of these: {fitting}."
    )


def prepare(p: Any, label: str, entry: Entry) -> Model:
    """The entry's model, loaded, with what tells of it in the job's infotext.

    Raises `WeightsError` if it cannot be had.
    """
    host.forget_skip()
    model = models.load(entry)
    if label != entry.label:
        p.extra_generation_params[settings.default_infotext(entry.space)] = entry.label
        if label != models.NEURAL:
            p.extra_generation_params[settings.MISFIT_INFOTEXT] = settings.DEFAULT
    precision = settings.precision()
    if precision is not None:
        p.extra_generation_params[settings.PRECISION_INFOTEXT] = precision
    p.extra_generation_params[_HASH] = files.short_hash(model.path)
    return model


def forget_infotext(p: Any) -> None:
    """Takes out what `prepare` put in: X/Y/Z runs copies of one job, which share it."""
    for name in (
        _HASH,
        settings.MISFIT_INFOTEXT,
        settings.PRECISION_INFOTEXT,
        *map(settings.default_infotext, SPACES.values()),
    ):
        p.extra_generation_params.pop(name, None)


def upscale(
    model: Model,
    latent: Tensor,
    size: tuple[int, int],
    stopped: Callable[[], None] = lambda: None,
) -> Tensor:
    """The latent (N, C, H, W) as (N, C, *size), on its own device; of an interrupted job some
    latent of that size, with which the host goes on until it stops by itself.

    stopped: called where it was interrupted.
    """
    try:
        return run(model, latent, size)
    except Interrupted:
        stopped()
        return resample(latent, size).to(latent.dtype)


def run(model: Model, latent: Tensor, size: tuple[int, int]) -> Tensor:
    """As `upscale`, but raises `Interrupted`."""
    started = now(latent.device)
    models.cache.policy, models.cache.budget = settings.policy(), settings.budget()
    chosen = settings.precision()
    dtype = settings.PRECISIONS[chosen] if chosen else host.precision(latent.device)
    ran: list[tuple[torch.device, torch.dtype]] = []
    with host.progress_text(f"Latent upscale: {models.title(model)}") as progress:
        result = models.engine.upscale(
            model,
            latent,
            size,
            dtype=dtype,
            compile=settings.compiles(),
            should_stop=host.interrupted,
            progress=progress,
            limit=settings.chunk_limit(),
            told=lambda *how: ran.append(how),
        )
    (height, width), seconds = latent.shape[-2:], now(latent.device) - started
    device, precision = ran[-1]
    print(
        f"Latent upscale: {model.upscaler.name}, {width}x{height} to {size[1]}x{size[0]} "
        f"in {seconds:.2f} s on {device} in {str(precision).removeprefix('torch.')}"
    )
    return result
