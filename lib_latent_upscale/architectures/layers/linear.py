"""Linear layers, in one kernel with the GELU or the skip behind them where there is one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import kernels


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
    if kernels.usable(x, weight, bias, residual):
        if residual is not None:
            return kernels.linear_binary(x, residual, weight, bias)
        return kernels.linear(x, weight, bias, "gelu" if gelu else "none")
    x = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(x)
    return x if residual is None else residual + x
