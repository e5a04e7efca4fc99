"""The contextual loss.

Mechrez, Talmi and Zelnik-Manor, The contextual loss for image transformation with non-aligned
data, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..latent_classifier import STRIDES, LatentClassifier, load
from .base import Loss

EPSILON = 1e-5
"""Added to the smallest distance, the paper's value."""


class Contextual(Loss):
    """-log of the contextual similarity of two latents' features, a mean over stages and images.

    Every feature of the target shall be found somewhere in the prediction, wherever it is.

    features: a classifier of latents, or its file.
    stages: whose features; stage 0 is as large as the latent, 1 half, 2 a quarter.
    band_width: how much farther than the nearest feature still counts, relative to it.
    tile: larger feature maps are compared in parts of at most this side, because memory grows
        with the fourth power of the side: 64 takes 64 MB for every matrix.
    to_raw: brings the latents that are compared to the raw scale, which the classifier wants.
    """

    on = ("latent",)

    def __init__(
        self,
        features: LatentClassifier | Path | str,
        stages: Sequence[int] = (1, 2),
        band_width: float = 0.5,
        tile: int = 64,
        to_raw: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not stages or any(stage not in range(len(STRIDES)) for stage in stages):
            raise ValueError(f"stages are some of 0 to {len(STRIDES) - 1}, not {stages}")
        if not band_width > 0 or tile < 2:
            raise ValueError(
                f"band_width is above 0 and tile 2 or more, not {band_width} and {tile}"
            )
        self.features = features if isinstance(features, LatentClassifier) else load(features)
        self.features.eval().requires_grad_(False)
        self.stages, self.band_width, self.tile = tuple(stages), band_width, tile
        self.to_raw = to_raw

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(target)
        found = self._features(predicted)
        losses = [
            self._compare(found[stage], wanted[stage]) for stage in dict.fromkeys(self.stages)
        ]
        return torch.stack(losses).mean()

    def _features(self, latents: Tensor) -> list[Tensor]:
        return self.features.features(self.to_raw(latents) if self.to_raw else latents)

    def _compare(self, found: Tensor, wanted: Tensor) -> Tensor:
        """A mean over the tiles, all of nearly the same size."""
        values = [
            contextual_loss(one, other, self.band_width)
            for one, other in zip(_tiles(found, self.tile), _tiles(wanted, self.tile))
        ]
        return torch.stack(values).mean()


def contextual_loss(found: Tensor, wanted: Tensor, band_width: float = 0.5) -> Tensor:
    """-log CX of two sets of features, each (N, C, h, w): a mean over N.

    Distances are cosine's, after the mean of `wanted` was taken from both. With d the distance
    of found i and wanted j, d' = d / (min over j of d + 1e-5), w = exp((1 - d') / band_width),
    and CX_ij = w / (sum over j of w): the contextual similarity is the mean over j of the
    largest CX_ij over i.
    """
    centre = wanted.mean((-2, -1), keepdim=True)
    x = F.normalize((found - centre).flatten(2), dim=1)
    y = F.normalize((wanted - centre).flatten(2), dim=1)
    distance = (1 - x.transpose(1, 2) @ y).clamp_min(0)  # (N, i, j); rounding can go below
    relative = distance / (distance.amin(2, keepdim=True) + EPSILON)
    similarity = ((1 - relative) / band_width).softmax(2)
    return -similarity.amax(1).mean(1).log().mean()


def _tiles(features: Tensor, side: int) -> list[Tensor]:
    rows = features.tensor_split(math.ceil(features.shape[-2] / side), -2)
    return [tile for row in rows for tile in row.tensor_split(math.ceil(row.shape[-1] / side), -1)]
