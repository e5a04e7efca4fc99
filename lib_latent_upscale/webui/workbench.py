"""Upscaling outside of the WebUI's own jobs: a picture or a latent, by any model or way.

What the page and the API are made of:

    with workbench.opened() as bench:
        latent = bench.encode(pictures.read(content))
        size = workbench.target(latent, factor=2)
        result = bench.upscale(latent, bench.choose("bundled-sd15"), size)
        picture = bench.decode(result.latent)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..catalog import Entry
from ..inference import Interrupted
from ..latent_files import LatentFileError
from ..memory import is_out_of_memory
from ..spaces import LatentSpace
from . import host, job, models, pictures, settings

Size = tuple[int, int]
"""Height and width in latent pixels."""


class WorkbenchError(ValueError):
    """What was asked for cannot be done; the message says why, and what to do."""


class WrongSpaceError(WorkbenchError):
    """A model of one latent space, and latents of another."""


class NoMemoryError(WorkbenchError):
    """The device's memory ran out."""


@dataclass(frozen=True)
class Upscaled:
    """A latent made larger."""

    latent: Tensor
    """(1, C, H, W), in UNet scale, float32, on the CPU."""
    seconds: float
    """From latent to latent; reading a model's file is not in it."""


@dataclass(frozen=True)
class UpscaledByModel(Upscaled):
    """By a model of ours; `path` is its file."""

    path: Path


def target(
    latent: Tensor,
    *,
    width: int | None = None,
    height: int | None = None,
    factor: float | None = None,
) -> Size:
    """The size to bring a latent to, for a picture of `width` x `height` pixels or a factor.

    One side alone keeps the shape; pixels are rounded to multiples of 8. Raises
    `pictures.PictureError` for one that is not allowed.
    """
    high, wide = latent.shape[-2:]
    if width is not None or height is not None:
        factor_x = width / pictures.FACTOR / wide if width is not None else None
        factor_y = height / pictures.FACTOR / high if height is not None else factor_x
        factor_x = factor_x if factor_x is not None else factor_y
    else:
        factor_x = factor_y = factor if factor is not None else 2.0
    assert factor_x is not None and factor_y is not None
    size = round(high * factor_y), round(wide * factor_x)
    pictures.check_size(size[1] * pictures.FACTOR, size[0] * pictures.FACTOR)
    return size


def check(latent: Tensor) -> None:
    """Raises `LatentFileError` for several latents in one, and what `check_size` raises."""
    if latent.shape[0] != 1:
        raise LatentFileError(f"one latent at a time; these are {latent.shape[0]} latents")
    check_size(latent)


def check_size(latent: Tensor) -> None:
    """Raises `pictures.PictureError` for a latent of a size that is not allowed."""
    height, width = latent.shape[-2:]
    pictures.check_size(width * pictures.FACTOR, height * pictures.FACTOR)


@contextmanager
def opened(task: str | None = None) -> Iterator[Workbench]:
    """The workbench, once it is this caller's turn: waits for the WebUI's queue, and holds it.

    The WebUI's progress and its Interrupt and Skip are about this until the end. Must not be
    used within what the WebUI itself queues (`wrap_gradio_gpu_call`): the queue would wait for
    itself.

    task: the id under which a page asks for progress, "task(...)".
    """
    from modules import call_queue, progress, shared

    task = task or progress.create_task_id("latent_upscale")
    progress.add_task_to_queue(task)
    with call_queue.queue_lock:
        shared.state.begin(job=task)
        progress.start_task(task)
        try:
            with torch.no_grad():
                yield Workbench()
        finally:
            progress.finish_task(task)
            shared.state.end()
            shared.state.interrupted = shared.state.skipped = False


class Workbench:
    """The loaded checkpoint's VAE, and our models; see `opened`.

    All methods raise `inference.Interrupted` when the user pressed Interrupt or Skip, and
    `NoMemoryError` when nothing more can be done about that. Latents are (1, C, H, W) in UNet
    scale, float32, on the CPU, before and after.
    """

    @cached_property
    def checkpoint(self) -> Any:
        """The WebUI's checkpoint, loaded if it is not. Raises `WorkbenchError`."""
        try:
            checkpoint = host.load_checkpoint()
        except Exception as error:  # whatever the host says
            raise WorkbenchError(f"the checkpoint cannot be loaded: {error}") from error
        if checkpoint is None:
            raise WorkbenchError("no checkpoint is loaded; choose one in the WebUI")
        return checkpoint

    @cached_property
    def space(self) -> LatentSpace:
        """The latent space of its VAE. Raises `WorkbenchError` for one that is not known here."""
        space = host.checkpoint_space(self.checkpoint)
        if space is None:
            raise WorkbenchError(
                "the loaded checkpoint's latents are of a kind that no latent upscaler here is "
                "made for. Choose another checkpoint."
            )
        return space

    def choose(self, id: str | None = None, space: LatentSpace | None = None) -> Entry:
        """The model of that id, or the default one of the settings.

        space: that of the latent; by default the checkpoint's, which it is where a picture is
            encoded or decoded. The model must be for it.

        Raises `shelf.UnknownModelError`, and `WrongSpaceError`.
        """
        entry = models.shelf().entry(id) if id is not None else None
        space = space or self.space
        if entry is not None and entry.space is space:
            return entry
        if entry is None:
            return settings.default_entry(space)
        fitting = ", ".join(other.id for other in models.entries(space))
        raise WrongSpaceError(
            f"{entry.id} is for {entry.space.label} latents, but these are {space.label}'s. "
            f"Fitting ones: {fitting}."
        )

    def encode(self, picture: Image.Image) -> Tensor:
        """The latent of a picture, by the checkpoint's VAE as in img2img.

        picture: as `pictures.prepare` and `pictures.read` give it. Most VAEs draw noise of their
        own, far below what can be seen.
        """
        assert self.space
        with self._doing("encoding"):
            latent = host.encode(self.checkpoint, pictures.to_tensor(picture)).float().cpu()
        return self._finite(latent)

    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of a latent, by the checkpoint's VAE.

        Raises `WrongSpaceError` for a latent that is not the VAE's, as far as its channels tell.
        """
        self._check(latent, self.space)
        with self._doing("decoding"):
            values = host.decode(self.checkpoint, latent)
        return pictures.from_tensor(self._finite(values))

    def upscale(self, latent: Tensor, entry: Entry, size: Size) -> UpscaledByModel:
        """By a model, in the same way as in a hires pass: its precision, cache and log.

        The model's file is fetched first where it is not here and the settings allow it. Raises
        `WeightsError` if it cannot be had.
        """
        self._check(latent, entry.space)
        model = models.load(entry)
        with self._doing(f"upscaling with {entry.id}"):
            moved = latent.to(host.device())
            result, seconds = _timed(lambda: job.run(model, moved, size))
        return UpscaledByModel(result, seconds, model.path)

    def bicubic(self, latent: Tensor, size: Size) -> Upscaled:
        """By bicubic interpolation, as the WebUI's "Latent (bicubic antialiased)"."""
        return Upscaled(
            *_timed(lambda: F.interpolate(latent, size=size, mode="bicubic", antialias=True))
        )

    def through_pixels(self, latent: Tensor, size: Size, upscaler: str = "Lanczos") -> Upscaled:
        """By decoding, upscaling the picture and encoding it, as a hires pass does with an
        upscaler of pictures. upscaler: its name in the WebUI."""

        def run() -> Tensor:
            picture = self.decode(latent)
            width, height = size[1] * pictures.FACTOR, size[0] * pictures.FACTOR
            with self._doing(f"upscaling with {upscaler}"):
                picture = host.resize(picture, width, height, upscaler)
            return self.encode(picture)

        return Upscaled(*_timed(run))

    def _finite(self, values: Tensor) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            raise WorkbenchError(
                "the VAE gave NaN or infinite values. Run the WebUI with --no-half-vae, or choose "
                "another VAE."
            )
        return values

    def _check(self, latent: Tensor, space: LatentSpace) -> None:
        if latent.shape[1] != space.channels:
            raise WrongSpaceError(
                f"latents of {space.label} have {space.channels} channels; this one has "
                f"{latent.shape[1]}"
            )

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Shows what is done, and gives memory that ran out its error."""
        if host.interrupted():
            raise Interrupted(f"interrupted before {what}")
        host.show(f"Latent upscale: {what}")
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = f"memory ran out while {what}; choose a smaller size"
        else:
            return
        # Outside of the handler: a traceback would hold what it failed with.
        host.collect()
        raise NoMemoryError(message)


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result on the CPU, and the seconds until it was there."""
    started = time.perf_counter()
    result = run().float().cpu()
    return result, time.perf_counter() - started
