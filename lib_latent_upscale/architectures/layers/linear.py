"""Linear layers, in one kernel with the GELU or the skip behind them where there is one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """A linear layer on the last axis."""

    def forward(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """`linear` with this layer's weights."""
        return linear(x, self.weight, self.bias, gelu=gelu, residual=residual)

    def parts(self, x: Tensor, count: int, *, gelu: bool = False) -> list[Tensor]:
        """The result as `count` tensors of equal shares of its channels.

        Contiguous ones, as slices of one result are not: what needs such would have to copy them.
        """
        shares = zip(self.weight.chunk(count), self.bias.chunk(count))
        return [linear(x, weight, bias, gelu=gelu) for weight, bias in shares]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x (..., in) by weight (out, in) and bias (out), then GELU, or plus `residual` (..., out)."""
    assert not (gelu and residual is not None), "no network has both"
    if _in_one_kernel(x, weight, residual):
        pointwise = torch.ops.mkldnn._linear_pointwise
        if residual is not None:
            return pointwise.binary(x, residual, weight, bias, "add")
        return pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    x = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(x)
    return x if residual is None else residual + x


def _in_one_kernel(x: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether oneDNN's fused kernel may be used: it is the CPU's, and it records no gradients.

    It is also the faster kernel by itself: on AMD's CPUs, F.linear (MKL) takes up to 1.6 times
    as long, most of all with an output width that is no multiple of 16, like 3 * 270.
    """
    tensors = (x, weight) if residual is None else (x, weight, residual)
    return (
        x.device.type == "cpu"
        and all(tensor.dtype == x.dtype for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and _kernel_works(x.dtype)
    )


@cache
def _kernel_works(dtype: torch.dtype) -> bool:
    """Whether this torch, on this CPU, has the kernel in this precision."""
    one = torch.ones(1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, one[0], "gelu", [], "none")
        torch.ops.mkldnn._linear_pointwise.binary(one, one, one, one[0], "add")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True
