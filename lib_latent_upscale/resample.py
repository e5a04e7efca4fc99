"""Plain resampling of latents, for sizes that no network gives by itself."""

from __future__ import annotations

import torch
from torch import Tensor

_LOBES = 3


def resample(latent: Tensor, size: tuple[int, int], antialias: float = 1.0) -> Tensor:
    """(N, C, H, W) to (N, C, *size) by Lanczos interpolation, in float32.

    Lanczos keeps more of a latent's fine detail than torch's bicubic (docs/sizes.md). It is two
    matrix products, which every device has.

    antialias: how far the kernel widens with the step on an axis that becomes smaller, but not
        by half or more: 1 is full antialiasing, 0 none. Smaller by half or more: always full.
    """
    height, width = latent.shape[-2:]
    result = latent.float()
    if size[0] != height:
        result = _weights(height, size[0], antialias).to(result.device) @ result
    if size[1] != width:
        result = result @ _weights(width, size[1], antialias).to(result.device).T
    return result


def _weights(given: int, wanted: int, antialias: float) -> Tensor:
    """(wanted, given): how much of each sample goes into each new one; rows add up to 1."""
    step = given / wanted
    centers = (torch.arange(wanted, dtype=torch.float64) + 0.5) * step - 0.5
    distances = torch.arange(given, dtype=torch.float64) - centers[:, None]
    distances /= max(step if step >= 2 else step**antialias, 1.0)
    kernel = torch.sinc(distances) * torch.sinc(distances / _LOBES)
    kernel[distances.abs() >= _LOBES] = 0
    return (kernel / kernel.sum(dim=1, keepdim=True)).float()
