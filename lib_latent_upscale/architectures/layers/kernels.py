"""oneDNN's fused kernels: a linear layer or a convolution and what is done to its result, in one.

They are the CPU's and record no gradients. Where they cannot be used, callers do the same in steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from . import winograd
from .constants import ConstantCache, records_gradients

Activation = Literal["none", "gelu", "relu", "silu"]

_Geometry = tuple[list[int], list[int], list[int], int]
"""Of a convolution: padding, stride, dilation and groups."""


def usable(*tensors: Tensor | None) -> bool:
    """Whether they may be used for these tensors, of one precision on the CPU.

    They are the faster ones without a tail, too: on an AMD EPYC, F.linear (MKL) takes 1.6 times
    as long for 4096 tokens of 270 channels to 810.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in given)
        and not records_gradients(*given)
        and _work(dtype)
    )


def activate(x: Tensor, activation: Activation) -> Tensor:
    """What the kernels do to their result, for where they cannot be used."""
    return x if activation == "none" else getattr(F, activation)(x)


class PackedWeights(ConstantCache):
    """A layer's weights in the order in which a CPU computes with them, each put so once.

    Without it every call of oneDNN does that anew: 5 to 10% of a linear layer's time in float32,
    for 4096 tokens and 180 to 480 channels, and a quarter of that of a 3x3 convolution of 64
    channels in bfloat16 (Intel Xeon with AMX). The layer's own weights stay as they are, beside it.
    """

    def linear(self, weight: Tensor) -> Tensor:
        """`weight` (out, in), of the layer or some rows of it, for `linear`."""
        return self._packed(weight, torch.ops.mkldnn._reorder_linear_weight)

    def convolution(self, weight: Tensor, geometry: _Geometry) -> Tensor:
        """`weight` (out, in / groups, side, side), or some rows of it, for `convolution`."""
        return self._packed(weight, torch.ops.mkldnn._reorder_convolution_weight, *geometry)

    def winograd(self, weight: Tensor) -> Tensor:
        """`weight` (out, in, 3, 3), for `winograd.convolve`."""
        return self._packed(weight, winograd.transformed)

    def _packed(self, weight: Tensor, pack: Callable[..., Tensor], *how: list[int] | int) -> Tensor:
        # Of the whole, not of some rows: a view of it stays behind where the weights are moved.
        whole = weight if weight._base is None else weight._base
        look = weight.shape, weight.stride(), weight.storage_offset()

        def compute(whole: Tensor) -> Tensor:
            return pack(whole.as_strided(*look).contiguous(), *how)

        return self.get((pack, *look), (whole,), compute)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    packed: PackedWeights | None = None,
) -> Tensor:
    """x (..., in) by weight (out, in); then the activation, or plus `residual`."""
    if packed is not None:
        weight = packed.linear(weight)
    if residual is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, _NAMES[activation], [], "none")
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    packed: PackedWeights | None = None,
) -> Tensor:
    """A same-size convolution of a picture (N, C, H, W); plus `residual` or by `gate`; then the
    activation."""
    geometry = _geometry(x, weight)
    if packed is not None:
        weight = packed.convolution(weight, geometry)
    name = _NAMES[activation]
    other, operation = (residual, "add") if gate is None else (gate, "mul")
    if other is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, name, [], "none")
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x,
        other,
        weight,
        bias,
        *geometry,
        operation,
        None,
        None if name == "none" else name,
        [],
        None,
    )


_NAMES: dict[Activation, str] = {"none": "none", "gelu": "gelu", "relu": "relu", "silu": "swish"}


def _geometry(x: Tensor, weight: Tensor) -> _Geometry:
    return [weight.shape[-1] // 2] * 2, [1, 1], [1, 1], x.shape[1] // weight.shape[1]


@cache
def _work(dtype: torch.dtype) -> bool:
    """Whether this torch, on this CPU, has the kernels in this precision."""
    # Compared as versions, not as text. Before 2.2 they may end the process: see CONTRIBUTING.md.
    if torch.__version__ < "2.2":
        return False
    with torch.inference_mode(False), torch.no_grad():
        one, picture = torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
        packed = PackedWeights()
        try:
            for activation in _NAMES:
                linear(one, one, one[0], activation, packed=packed)
                convolution(picture, picture, one[0], activation, packed=packed)
            linear(one, one, one[0], residual=one, packed=packed)
            for activation in ("none", "relu"):
                convolution(picture, picture, one[0], activation, residual=picture, packed=packed)
            convolution(picture, picture, one[0], gate=picture, packed=packed)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return False
    return True
