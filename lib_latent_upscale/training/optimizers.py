"""Optimizers by name, and how the learning rate goes through a run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .errors import TrainingError
from .muon import Muon

Schedule = Literal["constant", "cosine", "one-cycle"]
_KNOWN: Mapping[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "muon": Muon,
}


def build(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer: adam, adamw, sgd of torch, our muon, or any that pytorch_optimizer names.

    options: further arguments of its constructor.
    Raises `TrainingError` for one that is unknown, takes no such options, or needs more than a
    gradient at each step (a closure, the Hessian).
    """
    chosen = name.lower().replace("-", "").replace("_", "")
    optimizer_class: Any = _KNOWN.get(chosen) or _found(chosen, name)
    # Of a file or a command line they are lists, which newer torches make tuples of themselves.
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in options.items()}
    try:
        return optimizer_class(list(parameters), lr=learning_rate, **given)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TrainingError(
            f"the optimizer {name} cannot be made with lr={learning_rate:g}, "
            f"{dict(options)}: {error}"
        ) from error


def _found(chosen: str, name: str) -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise TrainingError(
            f"the optimizer {name} is one of pytorch_optimizer's, which is not installed: "
            f"pip install pytorch_optimizer ({error})"
        ) from error
    known = pytorch_optimizer.get_supported_optimizers()
    if chosen not in known:
        near = difflib.get_close_matches(chosen, [*_KNOWN, *known], 5, 0.4)
        raise TrainingError(
            f"no optimizer {name!r}; near it are {', '.join(near) or 'none'}, and all are "
            f"{', '.join([*_KNOWN, *known])}"
        )
    return pytorch_optimizer.load_optimizer(chosen)


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate over a run, as a factor of the peak: a pure function of the step.

    kind: "constant"; "cosine", down to `floor` at the end (Loshchilov and Hutter, ICLR 2017); or
        "one-cycle", up by a cosine over the first `warm_up` or 30 % of the steps, from 1/25, and
        down to nearly nothing (Smith and Topin, 2018; torch's defaults).
    warm_up: steps over which the rate rises in a line from nearly nothing.
    """

    kind: Schedule
    steps: int
    warm_up: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine", "one-cycle"):
            raise TrainingError(
                f"no schedule {self.kind!r}; there are constant, cosine and one-cycle"
            )

    def factor(self, step: int) -> float:
        """What the peak is multiplied by at a step, counted from 0."""
        if self.kind == "one-cycle":
            rising = max(1.0, self.warm_up or 0.3 * self.steps - 1)
            if step <= rising:
                return _between(1 / 25, 1.0, step / rising)
            falling = max(1.0, self.steps - 1 - rising)
            return _between(1.0, 1 / 25 / 1e4, min(1.0, (step - rising) / falling))
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if self.kind == "constant":
            return 1.0
        along = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return _between(1.0, self.floor, min(1.0, along))


def _between(start: float, end: float, along: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * along))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
