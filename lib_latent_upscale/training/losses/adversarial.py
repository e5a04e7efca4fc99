"""What the discriminator makes of a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import Loss

if TYPE_CHECKING:
    from ..discriminator import Adversary


class Adversarial(Loss):
    """How well the discriminator tells predictions from targets.

    adversary: the discriminator with its own optimizer. Its weights get no gradient from this.
    """

    on = ("latent",)

    def __init__(self, adversary: Adversary) -> None:
        super().__init__()
        # In a list, so that the discriminator is not among the loss's own modules.
        self._adversary = [adversary]

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self._adversary[0].generator_loss(predicted, target)
