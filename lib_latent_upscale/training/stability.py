"""Watches the loss of a run for the moment when training breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["good", "odd", "broken"]


@dataclass(frozen=True)
class Limits:
    """When training is broken.

    spike: an odd loss lies this many times the usual deviation above the usual loss.
    patience: so many odd losses in a row are broken training; one alone may be a hard batch.
    learning: steps at first, in which no loss is odd but one that is no number.
    memory: steps that "usual" is taken over.
    rollbacks: how often a run may go back to a checkpoint before it gives up, and `at_one_place`
        how often to the same checkpoint.
    """

    spike: float = 12.0
    patience: int = 3
    learning: int = 100
    memory: int = 200
    rollbacks: int = 20
    at_one_place: int = 4


DEFAULT = Limits()


class Watch:
    """Judges each step's loss by those before it: running mean and mean absolute deviation."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.limits = limits
        self.mean = 0.0
        self.deviation = 0.0
        self.seen = 0
        self.streak = 0

    def judge(self, loss: float, gradient_norm: float) -> Verdict:
        """What this step is. An odd or broken loss does not change what is usual."""
        numbers = math.isfinite(loss) and math.isfinite(gradient_norm)
        if not numbers or (self.seen >= self.limits.learning and loss > self.threshold):
            self.streak += 1
            return "odd" if numbers and self.streak < self.limits.patience else "broken"
        self.streak = 0
        self._learn(loss)
        return "good"

    @property
    def threshold(self) -> float:
        """The loss above which one is odd. Of either sign: SSIM's, say, may be negative."""
        usual = max(self.deviation, 0.02 * abs(self.mean))
        return self.mean + self.limits.spike * usual

    @property
    def calm(self) -> bool:
        """Whether the last loss was a usual one: only then is a checkpoint a good one."""
        return self.streak == 0

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers."""
        return {key: getattr(self, key) for key in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for key in _REMEMBERED:
            setattr(self, key, state[key])

    def _learn(self, loss: float) -> None:
        if self.seen == 0:
            self.mean = loss
        # An average over what there is, until there is more than the memory holds.
        weight = 1 / min(self.seen + 1, self.limits.memory)
        self.deviation += weight * (abs(loss - self.mean) - self.deviation)
        self.mean += weight * (loss - self.mean)
        self.seen += 1


_REMEMBERED = ("mean", "deviation", "seen", "streak")
