"""The frame of SwinIR (Liang et al., ICCVW 2021) that the restoration transformers share:
a first convolution, a deep body with a long skip, a pixel-shuffle tail."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..network import Network, Shapes, upscale_factor
from .tokens import Conv2d, to_picture, to_tokens


class RestorationNetwork(Network):
    """Subclasses build the body's modules, define `features`, and end with `_build_tail`."""

    multiple = 1
    """`features` takes heights and widths that are multiples of this."""
    float32_skips = False
    """Whether features are summed up in float32 when the network is in half precision: where so
    many skips follow each other that the sums' roundings are most of the error."""
    conv_after_body: nn.Module

    def __init__(self, channels: int, dim: int, scale: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = scale
        self.conv_first = Conv2d(channels, dim)

    def features(self, x: Tensor) -> Tensor:
        """The deep body: tokens (N, H, W, dim) to the same shape."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> Tensor:
        """The tail: tokens (N, H, W, dim) to a picture (N, channels, scale * H, scale * W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = self.output_size(*x.shape[-2:])
        first = self.conv_first(to_tokens(pad_to_multiple(x, self.multiple)))
        if self.float32_skips:
            first = first.to(torch.promote_types(first.dtype, torch.float32))
        body = self.conv_after_body(self.features(first)) + first
        return self.reconstruct(body.to(x.dtype))[..., :height, :width].contiguous()


class PixelShuffleTail(RestorationNetwork):
    """The "pixelshuffle" tail: a convolution to `tail_dim`, one shuffle for each factor."""

    conv_before_upsample: nn.Sequential
    upsample: nn.Sequential
    conv_last: nn.Conv2d

    def _build_tail(self, dim: int, tail_dim: int) -> None:
        assert isinstance(self.scale, int)
        self.conv_before_upsample = nn.Sequential(Conv2d(dim, tail_dim), nn.LeakyReLU())
        # Powers of two go by steps of 2. The shuffles have no weights but take an index each.
        power_of_two = self.scale & (self.scale - 1) == 0
        factors = [2] * (self.scale.bit_length() - 1) if power_of_two else [self.scale]
        self.upsample = nn.Sequential()
        for factor in factors:
            self.upsample.append(nn.Conv2d(tail_dim, factor**2 * tail_dim, 3, 1, 1))
            self.upsample.append(nn.PixelShuffle(factor))
        self.conv_last = nn.Conv2d(tail_dim, self.channels, 3, 1, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(to_picture(self.conv_before_upsample(x))))

    @staticmethod
    def tail_hyperparameters(shapes: Shapes) -> dict[str, int]:
        """Channels, factor and width of the tail, as its weights show them."""
        tail_dim = shapes.size("conv_before_upsample.0.weight")
        scale = 1
        for index in shapes.indices("upsample"):
            key = f"upsample.{index}.weight"
            scale *= upscale_factor(shapes.size(key, 1), shapes.size(key), key)
        return {
            "channels": shapes.size("conv_first.weight", 1),
            "dim": shapes.size("conv_first.weight"),
            "scale": scale,
            "tail_dim": tail_dim,
        }


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) grown at the right and the bottom to multiples of `multiple`.

    By reflection, or by repeating the edge on an axis whose pad is not smaller than its side.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if right:
        x = F.pad(x, (0, right, 0, 0), "reflect" if right < width else "replicate")
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), "reflect" if bottom < height else "replicate")
    return x
