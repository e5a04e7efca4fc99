"""Which pairs are made of a picture: sizes, factors, crops.

All of it is a pure function of the picture's name and size, the settings and their seed, so that
work can be counted before it is done, and done again in just the same way.

An encoder treats what lies near a picture's border in another way, because it sees nothing beyond.
So more is encoded than is kept: `margin` latent pixels at each side of both latents.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image
from torch import Tensor

from .codecs import FACTOR
from .errors import TrainingError
from .pictures import as_pixels

FLAT = 4.0
"""Grey levels: a crop whose standard deviation is less shows next to nothing."""
_DENOMINATOR = 16
_TRIES = 4
_LEAST = 8
"""Small latent pixels that a whole picture must have between its margins."""


@dataclass(frozen=True)
class Factors:
    """Factors from `low` to `high`, in sixteenths where they differ; written "2" or "1.1..2.1"."""

    low: Fraction
    high: Fraction

    def choices(self) -> list[Fraction]:
        """All of them, above 1."""
        if self.low == self.high:
            return [self.low]
        first, last = self.low * _DENOMINATOR, self.high * _DENOMINATOR
        sixteenths = [Fraction(n, _DENOMINATOR) for n in range(int(-(-first // 1)), int(last) + 1)]
        return [factor for factor in sixteenths if factor > 1]

    @property
    def grid(self) -> int:
        """A number of small latent pixels that each of them makes a whole number."""
        return self.low.denominator if self.low == self.high else _DENOMINATOR


def parse_factors(text: str) -> Factors:
    """A factor such as "2", "1.25" or "4/3", or a range such as "1..2.1".

    Raises `TrainingError`.
    """
    try:
        ends = [Fraction(one) for one in text.split("..")]
    except (ValueError, ZeroDivisionError):
        ends = []
    if len(ends) not in (1, 2):
        raise TrainingError(f"a factor is a number such as 1.25, 4/3 or 2, or 1..2.1, not {text}")
    low, high = ends[0], ends[-1]
    factors = Factors(low, high)
    if high < low or not low >= 1 or not 1 < high <= 8 or not factors.choices():
        raise TrainingError(f"factors lie above 1 and up to 8, unlike {text}")
    if low == high and low.denominator > _DENOMINATOR:
        near = low.limit_denominator(_DENOMINATOR)
        raise TrainingError(
            f"at factor {text} both sides of a latent are whole numbers only in steps of "
            f"{low.denominator} latent pixels, which is too coarse; take {near}"
        )
    return factors


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut.

    factors: each of these makes pairs of its own of every crop; of a range, a pair has one.
    crop: side of the small latents in latent pixels, 0 for whole pictures.
    crops: crops of a picture at each scale, at the most.
    margin: see this module.
    fit: pixels; a picture with a longer short side is first brought down to it. 0: none is.
    scales: the sizes that a picture is used at, as parts of what `fit` made of it.
    flip: whether everything is made of the mirrored picture too.
    """

    factors: tuple[Factors, ...]
    crop: int
    crops: int
    margin: int
    fit: int
    scales: tuple[float, ...]
    flip: bool
    seed: int

    def margins(self, factor: Fraction) -> tuple[int, int]:
        """The large and the small latent's margin, in latent pixels of their own.

        The small one is such that it ends at a pixel of the large picture.
        """
        grid = factor.denominator // math.gcd(factor.denominator, FACTOR)
        return self.margin, -(-self.margin // grid) * grid


@dataclass(frozen=True)
class Job:
    """A pair to be made.

    size: width and height that the picture is brought to.
    factor: of the pair.
    kept: height and width of the small latent without its margins, in latent pixels.
    margins: of the large and the small latent.
    places: left and top of the crop in pixels; the first that shows something is taken.
    mirrored: whether the crop is mirrored left to right.
    seeds: for the samples of the large and the small latent.
    """

    size: tuple[int, int]
    factor: Fraction
    kept: tuple[int, int]
    margins: tuple[int, int]
    places: tuple[tuple[int, int], ...]
    mirrored: bool
    seeds: tuple[int, int]

    @property
    def crop(self) -> tuple[int, int]:
        """Width and height of the crop in pixels: all that the small picture is made of."""
        width, height = self.small
        return int(width * self.factor), int(height * self.factor)

    @property
    def small(self) -> tuple[int, int]:
        """Width and height in pixels of the small picture that is encoded."""
        height, width = self.kept
        margin = self.margins[1]
        return FACTOR * (width + 2 * margin), FACTOR * (height + 2 * margin)

    @property
    def large(self) -> tuple[int, int]:
        """Width and height in pixels of the large picture that is encoded, the crop's middle."""
        height, width = self.kept
        margin = self.margins[0]
        return (
            FACTOR * (int(width * self.factor) + 2 * margin),
            FACTOR * (int(height * self.factor) + 2 * margin),
        )


def jobs(name: str, size: tuple[int, int], cutting: Cutting) -> list[Job]:
    """The pairs to be made of the picture of this name, width and height; none if it is small."""
    rng = random.Random(f"{cutting.seed}/{name}")
    found = []
    for scale in cutting.scales:
        scaled = _scaled(size, cutting.fit, scale)
        for _ in range(_crops(scaled, cutting)):
            for factors in cutting.factors:
                factor = rng.choice(factors.choices())
                found += _of_one(scaled, factor, factors.grid, cutting, rng)
    return found


def _scaled(size: tuple[int, int], fit: int, scale: float) -> tuple[int, int]:
    ratio = (min(1.0, fit / min(size)) if fit else 1.0) * scale
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _crops(scaled: tuple[int, int], cutting: Cutting) -> int:
    """As many as there is room for side by side: a small picture shall not weigh too much."""
    if not cutting.crop:
        return 1
    side = FACTOR * cutting.crop * float(max(factors.high for factors in cutting.factors))
    return max(1, min(cutting.crops, int(scaled[0] * scaled[1] / side**2)))


def _of_one(
    scaled: tuple[int, int], factor: Fraction, grid: int, cutting: Cutting, rng: random.Random
) -> list[Job]:
    """One pair and its mirrored one, or nothing if the picture has no room for it."""
    width, height = scaled
    margins = cutting.margins(factor)
    if cutting.crop:
        side = -(-cutting.crop // grid) * grid
        kept = side, side
    else:
        kept = _largest(height, factor, margins[1]), _largest(width, factor, margins[1])
        if min(kept) < _LEAST:
            return []
    crop = Job(scaled, factor, kept, margins, (), False, (0, 0)).crop
    right, below = width - crop[0], height - crop[1]
    if right < 0 or below < 0:
        return []
    if cutting.crop:
        places = [(rng.randint(0, right), rng.randint(0, below)) for _ in range(_TRIES)]
    else:
        places = [(right // 2, below // 2)]
    found = []
    for mirrored in (False, True) if cutting.flip else (False,):
        seeds = rng.getrandbits(63), rng.getrandbits(63)
        found.append(Job(scaled, factor, kept, margins, tuple(places), mirrored, seeds))
    return found


def _largest(pixels: int, factor: Fraction, margin: int) -> int:
    """The small latent's largest side without its margins that so many pixels have room for."""
    return int(pixels / (FACTOR * factor) - 2 * margin) // factor.denominator * factor.denominator


def cut(picture: Image.Image, work: Sequence[Job]) -> list[tuple[Job, Tensor, Tensor]]:
    """What is to be encoded: for each job the large and the small picture, (3, H, W) uint8.

    picture: RGB, of any size; it is brought to the jobs'.
    Jobs that would show next to nothing are left out.
    """
    made = []
    at_size: dict[tuple[int, int], Image.Image] = {}
    for job in work:
        if job.size not in at_size:
            at_size[job.size] = picture.resize(job.size, Image.Resampling.LANCZOS)
        crop = _first_that_shows(at_size[job.size], job)
        if crop is None:
            continue
        if job.mirrored:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        large = _middle(crop, job.large)
        small = crop.resize(job.small, Image.Resampling.LANCZOS)
        made.append((job, as_pixels(large), as_pixels(small)))
    return made


def _first_that_shows(picture: Image.Image, job: Job) -> Image.Image | None:
    width, height = job.crop
    kept = job.large[0] - 2 * FACTOR * job.margins[0], job.large[1] - 2 * FACTOR * job.margins[0]
    for left, top in job.places:
        crop = picture.crop((left, top, left + width, top + height))
        if np.asarray(_middle(crop, kept).convert("L")).std() >= FLAT:
            return crop
    return None


def _middle(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))
