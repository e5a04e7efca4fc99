"""`halfway`, our own: half of the way through the picture, by convolutions alone.

The way through the picture decodes a latent, enlarges the picture and encodes it again, and spends
nearly all of its time on large pictures. This network goes half of that way: it unfolds the latent
to features of half a latent pixel, which is as fine as needed to tell what the picture shows,
brings those to the target's grid (for a factor of 2 they are on it already), and folds them into a
latent.
Its blocks and its doubling are those of TAESD's halves (https://github.com/madebyollin/taesd).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .network import Network, Shapes


class ResidualBlock(nn.Module):
    """ReLU(x + three 3x3 convolutions with ReLU between them), (N, dim, H, W) to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv3 = nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(x + self.conv3(hidden))


class Halfway(Network):
    """Any target size; trained for factors from 1 to 2 (`max_scale`)."""

    architecture = "halfway"
    block_types = (ResidualBlock,)
    signature = ("unfold.weight", "fold.weight")

    max_scale = 2.0
    scale = None

    def __init__(self, channels: int, dim: int, coarse: int, fine: int, folding: int) -> None:
        """coarse, fine, folding: blocks at the small latent's size, at twice that, and at the
        target's."""
        super().__init__()
        self.channels = channels
        self.conv_first = nn.Conv2d(channels, dim, 3, 1, 1)
        self.coarse = _blocks(dim, coarse)
        self.unfold = nn.Conv2d(dim, dim, 3, 1, 1)
        self.fine = _blocks(dim, fine)
        self.fold = nn.Conv2d(dim, dim, 3, 1, 1)
        self.folding = _blocks(dim, folding)
        self.conv_last = nn.Conv2d(dim, channels, 3, 1, 1)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        return {
            "channels": shapes.size("conv_first.weight", 1),
            "dim": shapes.size("conv_first.weight"),
            "coarse": shapes.count("coarse"),
            "fine": shapes.count("fine"),
            "folding": shapes.count("folding"),
        }

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        features = self.unfolded(x)
        if tuple(size) != tuple(features.shape[-2:]):
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.conv_last(self.folding(self.fold(features))).contiguous()

    def unfolded(self, x: Tensor) -> Tensor:
        """A latent (N, C, H, W) as features (N, dim, 2 * H, 2 * W)."""
        # Channels last, convolutions take half of the time in half precision.
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.coarse(F.relu(self.conv_first(x)))
        return self.fine(self.unfold(F.interpolate(features, scale_factor=2, mode="nearest")))


def _blocks(dim: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(dim) for _ in range(count)))
