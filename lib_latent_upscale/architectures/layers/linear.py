"""Linear layers, in one kernel with the activation or the skip behind them where there is one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import kernels
from .kernels import Activation, PackedWeights


class Linear(nn.Linear):
    """A linear layer on the last axis."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.packed = PackedWeights()

    def forward(
        self, x: Tensor, *, activation: Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """`linear` with this layer's weights."""
        return linear(x, self.weight, self.bias, activation, residual, packed=self.packed)

    def parts(self, x: Tensor, count: int, *, activation: Activation = "none") -> list[Tensor]:
        """The result as `count` tensors of equal shares of its channels.

        Contiguous ones, as slices of one result are not: what needs such would have to copy them.
        """
        shares = zip(self.weight.chunk(count), self.bias.chunk(count))
        return [linear(x, *share, activation, packed=self.packed) for share in shares]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    *,
    packed: PackedWeights | None = None,
) -> Tensor:
    """x (..., in) by weight (out, in) and bias (out), then the activation, or plus `residual`
    (..., out).

    packed: of the layer that keeps these weights.
    """
    assert activation == "none" or residual is None, "no network has both"
    if kernels.usable(x, weight, bias, residual):
        return kernels.linear(x, weight, bias, activation, residual, packed)
    x = kernels.activate(F.linear(x, weight, bias), activation)
    return x if residual is None else residual + x
