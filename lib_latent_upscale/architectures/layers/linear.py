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
    if _in_one_kernel(x, weight, bias, residual):
        pointwise = torch.ops.mkldnn._linear_pointwise
        if residual is not None:
            return pointwise.binary(x, residual, weight, bias, "add")
        return pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    x = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(x)
    return x if residual is None else residual + x


def _in_one_kernel(*tensors: Tensor | None) -> bool:
    """Whether oneDNN's fused kernel may be used: it is the CPU's, and it records no gradients.

    It is the faster one without GELU and skip, too: on an AMD EPYC, F.linear (MKL) takes 1.6
    times as long for 4096 tokens of 270 channels to 810.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        and _kernel_works(dtype)
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
