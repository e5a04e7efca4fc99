"""Layers on channels-last tokens, (N, H, W, C)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import kernels, winograd
from .chunks import by_rows
from .kernels import Activation, PackedWeights
from .linear import Linear, linear


class Conv2d(nn.Conv2d):
    """A same-size convolution of tokens (N, H, W, C); a 1x1 one is a linear layer."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, 1, kernel_size // 2, bias=bias)
        self.packed = PackedWeights()

    def forward(
        self, x: Tensor, *, activation: Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """`convolve` with this layer's weights."""
        return convolve(
            x, self.weight, self.bias, activation, residual=residual, packed=self.packed
        )


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 convolution of tokens (N, H, W, C), each channel by itself."""

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, channels, 3, 1, 1, groups=channels, bias=bias)
        self.packed = PackedWeights()

    def forward(
        self, x: Tensor, *, activation: Activation = "none", gate: Tensor | None = None
    ) -> Tensor:
        """`convolve` with this layer's weights."""
        return convolve(x, self.weight, self.bias, activation, gate=gate, packed=self.packed)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    packed: PackedWeights | None = None,
) -> Tensor:
    """A same-size convolution of tokens (N, H, W, C), plus `residual` or by `gate`, then the
    activation.

    weight: (out, C, side, side), or (C, 1, side, side) for one of each channel by itself, which
        has no activation behind a residual or gate; side is odd.
    packed: of the layer that keeps these weights.
    """
    side = weight.shape[-1]
    assert residual is None or gate is None, "one of them"
    if side == 1 and weight.shape[1] == x.shape[-1]:
        # Not flattened: of weights in inference mode that is no view of them, to `PackedWeights`.
        flat = weight.view(weight.shape[:2])
        return linear(x, flat, bias, activation, residual, packed=packed)
    if packed is not None and winograd.pays(x, weight, bias):
        x = winograd.convolve(x, packed.winograd(weight), bias)
        return _finished(x, activation, residual, gate)
    picture = to_picture(x)
    if kernels.usable(x, weight, bias, residual, gate):
        residual, gate = (None if one is None else to_picture(one) for one in (residual, gate))
        return to_tokens(
            kernels.convolution(picture, weight, bias, activation, residual, gate, packed)
        )
    groups = x.shape[-1] // weight.shape[1]
    x = to_tokens(F.conv2d(picture, weight, bias, padding=side // 2, groups=groups))
    return _finished(x, activation, residual, gate)


def _finished(
    x: Tensor, activation: Activation, residual: Tensor | None, gate: Tensor | None
) -> Tensor:
    if residual is not None:
        x = residual + x
    if gate is not None:
        x = x * gate
    return kernels.activate(x, activation)


def add_branches(
    x: Tensor, dtype: torch.dtype, *branches: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """x plus what the branches find, each in the sum of all before it.

    branches: called with that sum in `dtype`, and with what to add to their result, if anything.
    Where x is in a higher precision, so is the result: the branches' results are summed up for
    themselves, and added to it at once.
    """
    if x.dtype == dtype:
        for branch in branches:
            x = branch(x, x)
        return x
    near, change = x.to(dtype), None
    for branch in branches:
        change = branch(near if change is None else near + change, change)
    assert change is not None
    return change.to(x.dtype).add_(x)


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last axis; then plus `skip`, if any."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        return by_rows(self._forward, x, skip, width=self.fc1.out_features)

    def _forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        return self.fc2(self.fc1(x, activation="gelu"), residual=skip)


def laid_as_tokens(x: Tensor) -> Tensor:
    """A latent (N, C, H, W) as (N, H, W, C), laid out as a CPU's convolutions are quickest with.

    In bfloat16 they take half or a third of the time so, in float32 four fifths. Other devices
    get it as it is: they choose for themselves, and not all have that layout.
    """
    x = x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
    return to_tokens(x)


def enlarge(x: Tensor, factor: float) -> Tensor:
    """Tokens (N, H, W, C) repeated: (N, factor * H, factor * W, C)."""
    return to_tokens(F.interpolate(to_picture(x), scale_factor=factor, mode="nearest"))


def to_picture(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), a channels-last view."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)
