"""The losses, by name. Each compares (N, C, H, W) with (N, C, H, W) and gives a scalar."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import TrainingError
from .adversarial import Adversarial
from .base import Loss
from .contextual import Contextual
from .frequency import FFT
from .hfen import HFEN
from .perceptual import LPIPS
from .pointwise import L1, MSE, PSNR, Huber
from .structural import SSIM, MultiScaleSSIM

LOSSES: dict[str, type[Loss]] = {
    "l1": L1,
    "mse": MSE,
    "huber": Huber,
    "psnr": PSNR,
    "fft": FFT,
    "hfen": HFEN,
    "contextual": Contextual,
    "ssim": SSIM,
    "ms_ssim": MultiScaleSSIM,
    "lpips": LPIPS,
    "adversarial": Adversarial,
}


def build(name: str, **options: Any) -> Loss:
    """The loss of this name.

    options: its constructor's arguments.
    Raises `TrainingError` for a name that there is not and for options that it does not take.
    """
    if name not in LOSSES:
        raise TrainingError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
    signature = inspect.signature(LOSSES[name])
    try:
        signature.bind(**options)
        return LOSSES[name](**options)
    except (TypeError, ValueError) as error:
        takes = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise TrainingError(
            f"the loss {name!r} cannot be built: {error}. It takes: {takes or 'no options'}"
        ) from error
