"""`halfway`, our own: half of the way through the picture, by convolutions alone.

The way through the picture decodes a latent, enlarges the picture and encodes it again, and spends
nearly all of its time on large pictures. This network goes half of that way: it unfolds the latent
to features of half a latent pixel, which is as fine as needed to tell what the picture shows, and
which is the pixel of a latent twice as large; and folds them into that. Its blocks and its doubling
are those of TAESD's halves (https://github.com/madebyollin/taesd).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layers.tokens import channels_last
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
    """Doubles a latent.

    coarse, fine, folding: blocks at the small latent's size, at twice that before the features
    are folded, and after.
    """

    architecture = "halfway"
    block_types = (ResidualBlock,)
    signature = ("unfold.weight", "fold.weight")
    scale = 2

    def __init__(self, channels: int, dim: int, coarse: int, fine: int, folding: int) -> None:
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
        features = self.folding(self.fold(self.unfolded(x)))
        return self.conv_last(features).contiguous()

    def unfolded(self, x: Tensor) -> Tensor:
        """A latent (N, C, H, W) as features (N, dim, 2 * H, 2 * W)."""
        features = self.coarse(F.relu(self.conv_first(channels_last(x))))
        return self.fine(self.unfold(F.interpolate(features, scale_factor=2, mode="nearest")))


def _blocks(dim: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(dim) for _ in range(count)))
