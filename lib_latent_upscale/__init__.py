"""Upscaling the latents of Stable Diffusion models with trained networks.

up = lib_latent_upscale.load("bundled-sd15")
larger = up(latent, size=(96, 128))  # (N, 4, H, W) in UNet scale, any floating type
"""

from __future__ import annotations

from .inference import Interrupted, LatentUpscaler, load
from .weights import MissingWeightsError, WeightsError

__all__ = ["Interrupted", "LatentUpscaler", "MissingWeightsError", "WeightsError", "load"]
__version__ = "0.1.0"
