"""Losses that compare number by number."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import Loss


class L1(Loss):
    """Mean absolute difference.

    average: of the means over squares of so many pixels a side, so of what is coarser: the tone
        of plain areas, which drowns in the differences of single pixels. What is left over at the
        far edges is not compared.
    """

    def __init__(self, average: int = 1) -> None:
        super().__init__()
        if average < 1:
            raise ValueError(f"average is a number of pixels, 1 or more, not {average}")
        self.average = average

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        difference = predicted - target
        if self.average > 1:
            difference = F.avg_pool2d(difference, min(self.average, *difference.shape[-2:]))
        return difference.abs().mean()


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


class PSNR(Loss):
    """Mean over the rows of ln(1 + MSE / floor): a fall of each row's decibels, whatever they are.

    With means of differences, rows that are hard to tell drown the errors of those that are easy,
    as skies and other plain areas are. The negated decibels are a loss of HINet's (Chen et al.,
    2021); the floor, about 46 dB for pictures in -1..1, keeps it positive and its gradient bounded.
    """

    def __init__(self, floor: float = 1e-4) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor is a squared difference above 0, not {floor}")
        self.floor = floor

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        errors = (predicted - target).square().flatten(1).mean(1)
        return (errors / self.floor).log1p().mean()
