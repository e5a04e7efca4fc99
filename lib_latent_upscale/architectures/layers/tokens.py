"""Layers on channels-last tokens, (N, H, W, C)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """A same-size convolution of tokens (N, H, W, C); a 1x1 one is a matrix product."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, 1, kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 convolution of tokens (N, H, W, C), each channel by itself."""

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, channels, 3, 1, 1, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.groups)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """A same-size convolution of tokens (N, H, W, C) by a square kernel of odd side."""
    side = weight.shape[-1]
    if side == 1 and groups == 1:
        return F.linear(x, weight.flatten(1), bias)
    return to_tokens(F.conv2d(to_picture(x), weight, bias, padding=side // 2, groups=groups))


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def to_picture(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), a channels-last view."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)
