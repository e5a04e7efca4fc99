"""A picture or a latent made larger in several ways, as files to look at side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .. import latent_files
from ..inference import Interrupted
from ..spaces import LatentSpace
from ..weights.errors import WeightsError
from . import host, host_page, models, pictures, workbench

BICUBIC, PIXELS = "Bicubic", "Decode, upscale, encode"
OTHER_WAYS = (BICUBIC, PIXELS)
"""What models are compared with."""

_MAX_PICTURE_BYTES = 256 << 20
_MAX_LATENT_BYTES = 64 << 20  # well above a 4096x4096 picture's with 16 channels


@dataclass(frozen=True)
class Wish:
    """What to compare.

    file: a picture or a latent. labels: models, `models.NEURAL` among them. ways: of
    `OTHER_WAYS`. width, height: pixels, 0 for what the other side, or else `factor`, gives.
    pixel_upscaler: the WebUI's name of the upscaler that `PIXELS` uses.
    """

    file: Path
    labels: Sequence[str]
    ways: Sequence[str] = OTHER_WAYS
    factor: float = 2.0
    width: int = 0
    height: int = 0
    pixel_upscaler: str = "Lanczos"


@dataclass(frozen=True)
class Result:
    """One way's: its name, and files in the comparison's folder.

    picture: of a file of several latents, the first one's. latent: all of them. size: (width,
    height) in pixels. seconds: None for what came in.
    """

    name: str
    size: tuple[int, int]
    picture: Path
    latent: Path
    seconds: float | None = None


@dataclass
class Comparison:
    """All ways' results, what came in first; and what went wrong with some, in words."""

    results: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    latents: int = 1
    """How many there were in the file."""


Way = tuple[str, Callable[[Tensor], workbench.Upscaled]]
"""Its name, and what it does with one latent (1, C, H, W)."""


def check(wish: Wish) -> Image.Image | None:
    """The picture of the wish; None for a latent, which is read when its space is known.

    Raises `ValueError` for what needs no checkpoint to see that it cannot be done.
    """
    if not wish.labels and not wish.ways:
        raise workbench.WorkbenchError("choose at least one model or another way")
    if wish.file.suffix.lower() in latent_files.SUFFIXES:
        _check_bytes(wish.file, _MAX_LATENT_BYTES, "a latent")
        return None
    _check_bytes(wish.file, _MAX_PICTURE_BYTES, "a picture")
    return pictures.read(wish.file.read_bytes())


def compare(wish: Wish, folder: Path, task: str | None = None) -> Comparison:
    """Does it, when it is its turn in the WebUI's queue, and puts the files into `folder`.

    A model that cannot be had or used is a problem of the comparison, as is an interruption;
    the other ways' results stay. Raises `ValueError` where nothing can be done.

    task: as in `workbench.opened`.
    """
    picture = check(wish)
    comparison = Comparison()
    with workbench.opened(task) as bench:
        try:
            _fill(comparison, wish, picture, bench, folder)
        except Interrupted:
            comparison.problems.append("Interrupted: what was done before is shown.")
    return comparison


def _fill(
    comparison: Comparison,
    wish: Wish,
    picture: Image.Image | None,
    bench: workbench.Workbench,
    folder: Path,
) -> None:
    small = bench.encode(picture) if picture is not None else read_latents(wish.file, bench.space)
    comparison.latents = small.shape[0]
    size = workbench.target(
        small, width=wish.width or None, height=wish.height or None, factor=wish.factor
    )

    def add(name: str, latent: Tensor, seconds: float | None, shown: Image.Image | None) -> None:
        shown = shown or bench.decode(latent[:1])
        # Numbered: names of several models may differ in what file names have not.
        stem = f"{_plain(wish.file.stem)}-{len(comparison.results)}-{_plain(name)}"
        result = Result(
            name, shown.size, folder / f"{stem}.png", folder / f"{stem}.safetensors", seconds
        )
        shown.save(result.picture)
        latent_files.write(result.latent, latent, bench.space)
        comparison.results.append(result)

    ways = list(_ways(comparison, wish, bench, size))
    host_page.show_part(0, len(ways) + 1)
    add("Input", small, None, picture)
    for number, (name, way) in enumerate(ways, start=1):
        host_page.show_part(number, len(ways) + 1)
        try:
            done = [way(one) for one in small.split(1)]
            latents = torch.cat([one.latent for one in done])
            add(name, latents, sum(one.seconds for one in done), None)
        except Interrupted:
            raise
        except (workbench.WorkbenchError, WeightsError) as error:
            if host.interrupted():  # a fetch that was stopped
                raise Interrupted(str(error)) from error
            comparison.problems.append(f"{name}: {error}")


def _ways(
    comparison: Comparison,
    wish: Wish,
    bench: workbench.Workbench,
    size: workbench.Size,
) -> Iterator[Way]:
    """In the order in which they are shown; each model once."""
    if BICUBIC in wish.ways:
        yield BICUBIC, partial(bench.bicubic, size=size)
    if PIXELS in wish.ways:
        upscaler = wish.pixel_upscaler
        way = partial(bench.through_pixels, size=size, upscaler=upscaler)
        yield f"{PIXELS} ({upscaler})", way
    known = {entry.label: entry.id for entry in models.entries()}
    seen = set()
    for label in wish.labels:
        try:
            entry = bench.choose(None if label == models.NEURAL else known.get(label, label))
        except (workbench.WorkbenchError, WeightsError) as error:
            comparison.problems.append(f"{label}: {error}")
            continue
        if entry.id not in seen:
            seen.add(entry.id)
            yield entry.label, partial(bench.upscale, entry=entry, size=size)


def read_latents(path: Path, space: LatentSpace) -> Tensor:
    """The latents (N, C, H, W) of a file, of an allowed size. Raises `ValueError`."""
    if path.suffix.lower() == ".safetensors":
        latent = latent_files.from_bytes(path.read_bytes(), space)
    else:
        latent = latent_files.read(path, space)
    workbench.check_size(latent)
    return latent


def _check_bytes(path: Path, limit: int, what: str) -> None:
    size = path.stat().st_size
    if size > limit:
        raise workbench.WorkbenchError(
            f"{path.name} has {size / 1e6:.0f} MB, too many for {what}: up to {limit / 1e6:.0f}"
        )


def _plain(text: str) -> str:
    """Of a name what may stand in every file system's."""
    return re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.")[:60] or "latent"
