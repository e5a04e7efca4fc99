"""`compact`, our own: a plain residual convolution network at the small latent's size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layers.tokens import Conv2d, laid_as_tokens, to_picture, to_tokens
from .network import Network, Shapes, upscale_factor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a SiLU between them and a skip; tokens (N, H, W, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(dim, dim)
        self.conv2 = Conv2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, activation="silu"), residual=x)


class Compact(Network):
    """Learns what bilinear upsampling of the latent lacks."""

    architecture = "compact"
    block_types = (ResidualBlock,)
    signature = ("blocks.0.conv1.weight", "conv_upsample.weight")

    def __init__(self, channels: int, dim: int, depth: int, scale: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = scale
        self.conv_first = Conv2d(channels, dim)
        self.blocks = nn.Sequential(*(ResidualBlock(dim) for _ in range(depth)))
        self.conv_upsample = Conv2d(dim, scale**2 * dim)
        self.conv_last = Conv2d(dim, channels)

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
        first = self.conv_first(laid_as_tokens(x))
        features = self.conv_upsample(self.blocks(first) + first, activation="silu")
        features = F.pixel_shuffle(to_picture(features), self.scale)
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return base + to_picture(self.conv_last(to_tokens(features))).contiguous()
