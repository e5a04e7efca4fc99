"""`compact`, our own: a plain residual convolution network at the small latent's size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layers.tokens import channels_last
from .network import Network, Shapes, upscale_factor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a SiLU between them and a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class Compact(Network):
    """Learns what bilinear upsampling of the latent lacks."""

    architecture = "compact"
    block_types = (ResidualBlock,)
    signature = ("blocks.0.conv1.weight", "conv_upsample.weight")

    def __init__(self, channels: int, dim: int, depth: int, scale: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = scale
        self.conv_first = nn.Conv2d(channels, dim, 3, 1, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(dim) for _ in range(depth)))
        self.conv_upsample = nn.Conv2d(dim, scale**2 * dim, 3, 1, 1)
        self.conv_last = nn.Conv2d(dim, channels, 3, 1, 1)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        key = "conv_upsample.weight"
        return {
            "channels": shapes.size("conv_first.weight", 1),
            "dim": shapes.size("conv_first.weight"),
            "depth": shapes.count("blocks"),
            "scale": upscale_factor(shapes.size(key, 1), shapes.size(key), key),
        }

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        assert isinstance(self.scale, int)
        first = self.conv_first(channels_last(x))
        features = self.blocks(first) + first
        features = F.silu(F.pixel_shuffle(self.conv_upsample(features), self.scale))
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return base + self.conv_last(features).contiguous()
