"""A network as jobs run it when it is compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..compiling import Compilation
from .networks import Model


def compiled(model: Model, x: Tensor) -> tuple[Callable[[], Tensor], float]:
    """A call of the model on `x`, compiled, and the seconds that compiling took.

    Raises `RuntimeError` with the compiler's reason if it cannot be.
    """
    log: list[str] = []
    network = model.build().to(x.device, x.dtype)
    compilation = Compilation(network, model.network.architecture, log.append, always=True)

    def run(x: Tensor, **how: Any) -> Tensor:
        return compilation.run(network, x, **how)

    with torch.inference_mode():
        model.call(run, x)
        started = time.perf_counter()
        while not log:
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        if compilation.failed:
            raise RuntimeError(log[0])
        model.call(run, x)
    return partial(model.call, run, x), seconds
