"""What every loss has in common: its input is checked, and it is computed in full precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Kind = Literal["latent", "picture"]


class Loss(nn.Module, ABC):
    """How far a prediction is from its target, as one number that has a gradient.

    Autocast is off inside and half precision is made float32: means over a hundred thousand
    differences, squares and Fourier transforms lose too much in bfloat16. Float64 stays.
    """

    on: ClassVar[tuple[Kind, ...]] = ("latent", "picture")
    """What it can compare."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Two tensors (N, C, H, W) of one shape -> a scalar, float32 or float64.

        Raises `ValueError` for other shapes and for integers.
        """
        if predicted.ndim != 4 or predicted.shape != target.shape or not predicted.numel():
            raise ValueError(
                f"{type(self).__name__} compares two tensors (N, C, H, W) of one shape, not "
                f"{tuple(predicted.shape)} and {tuple(target.shape)}"
            )
        if not (predicted.is_floating_point() and target.is_floating_point()):
            raise ValueError(f"{type(self).__name__} wants floats, not {predicted.dtype}")
        with torch.autocast(predicted.device.type, enabled=False):
            return self.measure(_full(predicted), _full(target))

    @abstractmethod
    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The same for tensors that have been checked, in float32 or float64."""


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
