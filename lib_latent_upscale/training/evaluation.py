"""What `evaluate` measures: ways from a small latent to a large one, and how near each comes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..clock import now
from ..inference import LatentUpscaler
from ..spaces import RAW, LatentSpace
from . import metrics
from .errors import TrainingError
from .evaluation_pictures import Pair
from .strength import hiding_strengths
from .vae import Vae, to_images

Size = tuple[int, int]

BICUBIC, THROUGH_THE_PICTURE = "bicubic on the latent", "through the picture"
"""The names of the ways that need no model."""

FIGURES: Mapping[str, str] = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "hfen": "HFEN",
    "sharpness": "sharpness",
    "l1": "latent L1",
    "mse": "latent MSE",
    "strength": "hidden at",
    "strength_karras": "by Karras",
    "detail_strength": "detail at",
    "detail_strength_karras": "by Karras",
    "seconds": "seconds",
}
"""The figures of a way, by their name in the JSON file, and the table's headings."""


@dataclass(frozen=True)
class Way:
    """A way from a small latent to a large one.

    upscale: takes a latent (N, C, h, w) in UNet scale and a size (H, W), gives (N, C, H, W).
    """

    name: str
    upscale: Callable[[Tensor, Size], Tensor]


def bicubic() -> Way:
    """Torch's bicubic interpolation of the latent itself."""
    return Way(
        BICUBIC,
        lambda latent, size: F.interpolate(latent, size=size, mode="bicubic", antialias=True),
    )


def by_model(upscaler: LatentUpscaler, name: str | None = None) -> Way:
    """A model, as the extension runs it: past the target and down where it has another factor."""
    return Way(name or upscaler.name, upscaler)


def through_the_picture(vae: Vae) -> Way:
    """Decode, bicubic interpolation of the picture, encode."""

    def upscale(latent: Tensor, size: Size) -> Tensor:
        picture = vae.decode(vae.space.unet.to(RAW, latent))
        pixels = (8 * size[0], 8 * size[1])
        large = F.interpolate(picture, size=pixels, mode="bicubic", antialias=True)
        return RAW.to(vae.space.unet, vae.encode(large.clamp(-1, 1)))

    return Way(THROUGH_THE_PICTURE, upscale)


@dataclass(frozen=True)
class Shown:
    """The decoded pictures of one pair, (1, 3, H, W) in 0..1 on the CPU, for the sheet."""

    name: str
    small: Tensor
    ways: Mapping[str, tuple[Tensor, float]]
    """The decoded result and its PSNR, by the way's name."""
    reference: Tensor


@dataclass(frozen=True)
class Result:
    """What `evaluate` measured at one factor.

    figures: for each way, for each picture of `names`, the values of `FIGURES`.
    """

    factor: float
    side: int
    small_side: int
    names: Sequence[str]
    figures: Mapping[str, Sequence[Mapping[str, float]]]
    shown: Sequence[Shown]

    def means(self) -> dict[str, dict[str, float]]:
        """By way: the mean of every figure over the pictures, of the time the median."""
        return {
            way: {
                key: (statistics.median if key == "seconds" else statistics.fmean)(
                    [row[key] for row in rows]
                )
                for key in FIGURES
            }
            for way, rows in self.figures.items()
        }

    def as_json(self) -> dict[str, Any]:
        """For the JSON file."""
        means = self.means()
        return {
            "factor": self.factor,
            "large_pixels": self.side,
            "small_pixels": self.small_side,
            "pictures": list(self.names),
            "ways": {
                way: {"mean": means[way], "pictures": [dict(row) for row in rows]}
                for way, rows in self.figures.items()
            },
        }


@torch.no_grad()
def evaluate(
    pairs: Iterable[Pair], ways: Sequence[Way], vae: Vae, factor: float, show: int = 0
) -> Result:
    """The figures of every way on pairs of pictures of one size.

    show: how many pairs to keep decoded for a sheet.

    Raises `TrainingError` if there is no pair.
    """
    names: list[str] = []
    figures: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    shown: list[Shown] = []
    side = small_side = 0
    for index, pair in enumerate(pairs):
        side, small_side = pair.large.shape[-1], pair.small.shape[-1]
        large, small = (_encoded(vae, picture, index) for picture in (pair.large, pair.small))
        reference = _decoded(vae, large)
        size = (large.shape[-2], large.shape[-1])
        results: dict[str, tuple[Tensor, float]] = {}
        for way in ways:
            if not names:  # what only the first call costs is not the way's time
                way.upscale(small, size)
            result, seconds = _timed(way, small, size)
            decoded = _decoded(vae, result)
            row = _compare(result.cpu(), large.cpu(), decoded, reference, vae.space)
            figures[way.name].append({**row, "seconds": seconds})
            results[way.name] = (decoded, row["psnr"])
        names.append(pair.name)
        if len(shown) < show:
            shown.append(Shown(pair.name, _decoded(vae, small), results, reference))
    if not names:
        raise TrainingError("no picture to evaluate on is left")
    return Result(factor, side, small_side, names, figures, shown)


def _compare(
    latent: Tensor, large: Tensor, decoded: Tensor, reference: Tensor, space: LatentSpace
) -> dict[str, float]:
    return {
        "psnr": metrics.psnr(decoded, reference),
        "ssim": metrics.ssim(decoded, reference),
        "hfen": metrics.hfen(decoded, reference),
        "sharpness": metrics.sharpness_ratio(decoded, reference),
        "l1": metrics.l1(latent, large),
        "mse": metrics.mse(latent, large),
        **hiding_strengths(latent, large, space),
    }


def _encoded(vae: Vae, picture: Tensor, seed: int) -> Tensor:
    """A picture (1, 3, H, W) in 0..1 as a latent in UNet scale.

    A VAE's latents are drawn: every picture's is drawn the same way each time.
    """
    generator = torch.Generator().manual_seed(seed)
    return RAW.to(vae.space.unet, vae.encode(2 * picture.to(vae.device) - 1, generator))


def _decoded(vae: Vae, latent: Tensor) -> Tensor:
    """A latent in UNet scale as a picture in 0..1, on the CPU."""
    return to_images(vae.decode(vae.space.unet.to(RAW, latent))).cpu()


def _timed(way: Way, latent: Tensor, size: Size) -> tuple[Tensor, float]:
    started = now(latent.device)
    result = way.upscale(latent, size)
    return result, now(latent.device) - started
