"""Upscaling the latents of Stable Diffusion models with trained networks.

up = lib_latent_upscale.load("bundled-sd15")
larger = up(latent, size=(96, 128))  # (N, 4, H, W) in UNet scale, any floating type
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import Interrupted, LatentUpscaler, load
    from .weights.errors import FetchError, MissingWeightsError, WeightsError

__all__ = [
    "FetchError",
    "Interrupted",
    "LatentUpscaler",
    "MissingWeightsError",
    "WeightsError",
    "load",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand, because install.py imports this package at every launch of a WebUI and must not
    # wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in (".weights.errors", ".inference"):
        found = getattr(import_module(module, __name__), name, None)
        if found is not None:
            return found
    raise AttributeError(name)
