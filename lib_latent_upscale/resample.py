"""Plain resampling of latents, for sizes that no network gives by itself."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resample(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to (N, C, *size) by antialiased bicubic interpolation, in float32."""
    if tuple(latent.shape[-2:]) == tuple(size):
        return latent
    return F.interpolate(latent.float(), size=size, mode="bicubic", antialias=True)
