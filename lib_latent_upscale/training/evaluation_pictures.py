"""The pictures that models are measured on, each at a large and a small size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image
from torch import Tensor

from . import pictures
from .codecs import FACTOR
from .errors import TrainingError
from .pictures import PictureFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BACKING = (160, 160, 160)
"""RGB behind a picture that is cut out, as portraits often are: a plain grey."""
MARGIN = Fraction(7, 6)
"""A picture is first brought down to this many times the large size on its short side."""


@dataclass(frozen=True)
class Pair:
    """A picture at two sizes, (1, 3, H, W) in 0..1."""

    name: str
    large: Tensor
    small: Tensor


def sides(size: int, factor: float) -> tuple[int, int]:
    """The sides in pixels of a large picture of about `size`, and of the small one.

    Both are multiples of 8, the large one `factor` times the small one. Raises
    `TrainingError` for a factor that no sides near that size have.
    """
    ratio = Fraction(factor).limit_denominator(64)
    if ratio <= 1 or abs(ratio - Fraction(factor)) > 1e-6:
        raise TrainingError(
            f"a factor of {factor:g}: above 1, and a fraction as 1.25 or 2, expected"
        )
    step = FACTOR * ratio.numerator
    side = step * max(1, round(Fraction(size, step)))
    if abs(side - size) > size // 4:
        raise TrainingError(f"no sides near {size} px have a factor of {factor:g}; try {side}")
    return side, int(side / ratio)


def find_pictures(folder: Path) -> list[Path]:
    """The picture files under a folder, sorted. Raises `TrainingError` if there is none."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise TrainingError(f"{folder}: no pictures ({', '.join(SUFFIXES)}) in it")
    return found


def read_pairs(
    paths: Iterable[Path], size: int, factor: float, report: Callable[[str], None]
) -> Iterator[Pair]:
    """The middle of every picture, at two sizes.

    report: told of every picture that cannot be used, and why.
    """
    side, small_side = sides(size, factor)
    for path in paths:
        try:
            picture = _prepared(path, int(size * MARGIN))
        except pictures.UNREADABLE as error:
            report(f"{path}: it cannot be read: {error}")
            continue
        if min(picture.size) < side:
            report(f"{path}: {picture.width}x{picture.height} px is too small for {side}x{side}")
            continue
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        large = picture.crop((left, top, left + side, top + side))
        small = large.resize((small_side, small_side), Image.Resampling.LANCZOS)
        yield Pair(path.name, _as_tensor(large), _as_tensor(small))


def _prepared(path: Path, short_side: int) -> Image.Image:
    """A picture in RGB, the right way up, its short side no more than `short_side`."""
    picture = pictures.read(PictureFile(path.name, "", path), BACKING)
    if min(picture.size) > short_side:
        scale = short_side / min(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def _as_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in 0..1."""
    return pictures.as_pixels(picture)[None].float() / 255
