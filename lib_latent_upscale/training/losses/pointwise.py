"""Losses that compare number by number."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import Loss


class L1(Loss):
    """Mean absolute difference."""

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(predicted, target)


class MSE(Loss):
    """Mean squared difference."""

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(predicted, target)


class Huber(Loss):
    """Mean of d^2/2 for differences d up to `delta`, of delta * (|d| - delta/2) beyond.

    Huber, Robust estimation of a location parameter, 1964.
    """

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"delta is a difference above 0, not {delta}")
        self.delta = delta

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(predicted, target, delta=self.delta)
