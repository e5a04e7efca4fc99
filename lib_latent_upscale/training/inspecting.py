"""Whether shards hold what they should: their statistics, and some pairs decoded to look at.

A model that is trained on latents of a wrong range or scale can have a falling loss and be useless
all the same: pictures encoded in 0..1 instead of -1..1, latents with a scaling factor applied,
another space's VAE. Each of these gives the channels other means and deviations than those of
`usual_latents`, which were measured on real pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..spaces import SPACES, LatentSpace
from . import sheets, usual_latents
from .shards import ShardReader
from .usual_latents import Moments
from .vae import Vae, to_images

_SAMPLE = 256
_SHOWN = 96
"""Small latent pixels of a pair that the contact sheet shows at the most along a side."""


@dataclass(frozen=True)
class Statistics:
    """Of some of the pairs: each channel's mean and standard deviation over the large latents, the
    number of values that are not finite, and how far the small latents agree with the large ones:
    the correlation with the large one averaged down, 1 if they were the same."""

    pairs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    not_finite: int
    agreement: float


def statistics(reader: ShardReader) -> Statistics:
    """The statistics of up to 256 pairs, evenly from all."""
    count = total = bad = 0
    agreements = []
    first = torch.zeros(reader.space.channels, dtype=torch.float64)
    second = torch.zeros_like(first)
    for index in _evenly(len(reader), _SAMPLE):
        small, large = (latent.double() for latent in reader.pair(index))
        wrong = int((~large.isfinite()).sum() + (~small.isfinite()).sum())
        bad += wrong
        if wrong:
            continue
        first += large.sum((1, 2))
        second += large.square().sum((1, 2))
        total += large.shape[1] * large.shape[2]
        count += 1
        agreements.append(_agreement(small, large))
    mean = first / max(total, 1)
    std = (second / max(total, 1) - mean.square()).clamp_min(0).sqrt()
    agreement = sum(agreements) / len(agreements) if agreements else 0.0
    return Statistics(count, _rounded(mean), _rounded(std), bad, round(agreement, 4))


def _agreement(small: Tensor, large: Tensor) -> float:
    down = F.adaptive_avg_pool2d(large[None], (small.shape[-2], small.shape[-1]))[0]
    one = (small - small.mean((1, 2), keepdim=True)).flatten()
    other = (down - down.mean((1, 2), keepdim=True)).flatten()
    return float(F.cosine_similarity(one, other, dim=0))


def check(reader: ShardReader) -> list[str]:
    """What the statistics warn of; empty if they look right."""
    return warnings(statistics(reader), reader.space)


def warnings(found: Statistics, space: LatentSpace) -> list[str]:
    """What statistics of latents that are to be raw ones of a space warn of."""
    said = []
    if found.not_finite:
        said.append(
            f"{found.not_finite} values of the latents are infinite or no numbers: the VAE "
            "overflowed; encode in fp32"
        )
    if not found.pairs:
        return said
    if found.agreement < usual_latents.LEAST_AGREEMENT:
        said.append(
            f"the small latents hardly agree with the large ones (correlation {found.agreement:.2f}"
            f", usually above {usual_latents.LEAST_AGREEMENT}): are they of the same pictures?"
        )
    seen = Moments(found.mean, found.std)
    right = usual_latents.distance(seen, usual_latents.RIGHT[space.id])
    guess, near = min(
        ((what, usual_latents.distance(seen, moments)) for what, moments in mistakes(space)),
        key=lambda one: one[1],
    )
    likely = near < right
    if right > usual_latents.VERY_FAR or (likely and right > usual_latents.FAR):
        usual = usual_latents.RIGHT[space.id]
        said.append(
            f"the statistics are not those of raw {space.label} latents"
            + (f": these look like {guess}" if likely else "")
            + f". (Distance {right:.2f}, usually below {usual_latents.FAR}; mean "
            f"{_few(found.mean)}, deviation {_few(found.std)}; usually {_few(usual.mean)} and "
            f"{_few(usual.std)}.) Unless all pictures are of one unusual kind, such as paper, a "
            "model trained on these will not work"
        )
    return said


def mistakes(space: LatentSpace) -> Iterator[tuple[str, Moments]]:
    """What latents can be that are not a space's raw ones, and the moments that they then have."""
    for other in SPACES.values():
        if other.channels != space.channels:
            continue
        of = "" if other == space else f" of {other.label}"
        right = usual_latents.RIGHT[other.id]
        if other != space:
            yield f"raw latents{of}", right
        low = usual_latents.FROM_0_TO_1[other.id]
        yield f"latents{of} of pictures in 0..1 instead of -1..1", low
        factor, shift = other.unet.factor, other.unet.shift
        yield (
            f"latents{of} with the scaling factor {factor} applied",
            right.transformed(factor, -shift * factor),
        )
        yield (
            f"latents{of} of pictures in 0..1, with the scaling factor {factor} applied",
            low.transformed(factor, -shift * factor),
        )
        yield (
            f"latents{of} divided by the scaling factor {factor}",
            right.transformed(1 / factor, shift),
        )


def draw(reader: ShardReader, vae: Vae, path: Path, count: int, seed: int) -> None:
    """Draws a contact sheet of `count` pairs, decoded: the small latent, enlarged, and the large
    one. Of a large pair, a part is shown."""
    rows = []
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(reader), generator=generator)[:count].tolist()
    for index in chosen:
        small, large = _middle(reader, index)
        with torch.no_grad():
            decoded = [to_images(vae.decode(one[None].to(vae.device)))[0] for one in (small, large)]
        side = (decoded[1].shape[-2], decoded[1].shape[-1])
        enlarged = F.interpolate(decoded[0][None], side, mode="nearest")[0]
        size, source = reader.sizes(index), reader.source(index)
        name = source.picture.rpartition("/")[2]
        title = f"{name[-30:]}, of {source.label[-20:]}, x{float(size.factor):g}"
        pictures = [sheets.as_image(enlarged), sheets.as_image(decoded[1])]
        rows.append(sheets.Row(title, pictures))
    columns = ["small latent, decoded and enlarged", "large latent, decoded"]
    sheets.save(sheets.contact_sheet(columns, rows), path)


def _middle(reader: ShardReader, index: int) -> tuple[Tensor, Tensor]:
    grid = reader.grid(index)
    height, width = reader.sizes(index).small
    side = max(grid, min(height, width, _SHOWN) // grid * grid)
    top, left = ((length - side) // 2 // grid * grid for length in (height, width))
    return reader.crop(index, top, left, side)


def _evenly(count: int, most: int) -> list[int]:
    return [round(i * (count - 1) / max(1, min(count, most) - 1)) for i in range(min(count, most))]


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _few(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.2g}" for value in values[:4]) + (" ..." if len(values) > 4 else "")
