"""oneDNN's fused kernels: a linear layer or a convolution and what is done to its result, in one.

They are the CPU's and record no gradients. Where they cannot be used, callers do the same in steps.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def usable(*tensors: Tensor | None) -> bool:
    """Whether they may be used for these tensors, of one precision on the CPU.

    They are the faster ones without a tail, too: on an AMD EPYC, F.linear (MKL) takes 1.6 times
    as long for 4096 tokens of 270 channels to 810.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        and _work(dtype)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tail: str) -> Tensor:
    """x (..., in) by weight (out, in); tail: "none" or "gelu"."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, tail, [], "none")


def linear_binary(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear`, plus `other`."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, tail: str) -> Tensor:
    """A same-size convolution of a picture (N, C, H, W); tail: "none" or "gelu"."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, *_geometry(x, weight), tail, [], "none"
    )


def convolution_binary(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, tail: str
) -> Tensor:
    """`convolution`, then "add" `other` or "mul" by it."""
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, weight, bias, *_geometry(x, weight), tail, None, None, [], None
    )


def _geometry(x: Tensor, weight: Tensor) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups."""
    return [weight.shape[-1] // 2] * 2, [1, 1], [1, 1], x.shape[1] // weight.shape[1]


@cache
def _work(dtype: torch.dtype) -> bool:
    """Whether this torch, on this CPU, has the kernels in this precision."""
    one, picture = torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
    try:
        linear(one, one, one[0], "gelu")
        linear_binary(one, one, one, one[0])
        convolution(picture, picture, one[0], "gelu")
        convolution_binary(picture, picture, picture, one[0], "mul")
        convolution_binary(picture, picture, picture, one[0], "add")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return True
