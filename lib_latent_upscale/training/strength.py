"""How much of a latent's error a second pass can redraw: a calculation, no trial.

The second pass begins with the upscaled latent and noise of the strength d. Where the noise is at
least as strong as the latent's error, in every band of spatial frequencies, the error is hidden:
what comes out there is the sampler's. Where it is weaker, the error shows through it and is taken
for the picture's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..spaces import FLUX, SD3, LatentSpace

BANDS = 8
"""Rings of spatial frequency, each an eighth of the highest along an axis wide; the last one has
the corners, too."""

_STEPS = 1000
_FLOW_SHIFTS = {SD3.id: 3.0, FLUX.id: math.exp(1.15)}
"""Of the spaces whose models are flows. FLUX's depends on the size: this is the one for 1024x1024,
and for any in Forge."""


def band_errors(error: Tensor) -> Tensor:
    """The strength of an error (N, C, H, W) in each band, (BANDS,), float64.

    It is the root of the mean power of the orthonormal cosine transform's coefficients, so that
    noise of the standard deviation s has s in all bands. A band that has no coefficient in so
    small a latent has 0.
    """
    height, width = error.shape[-2:]
    down, across = _cosines(height).to(error.device), _cosines(width).to(error.device)
    power = (down @ error.double() @ across.T).square().mean((0, 1)).cpu()
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64) / width
    band = (torch.hypot(rows, columns) * BANDS).long().clamp(max=BANDS - 1).flatten()
    sums = torch.zeros(BANDS, dtype=torch.float64).index_add(0, band, power.flatten())
    return (sums / torch.bincount(band, minlength=BANDS).clamp(min=1)).sqrt()


def least_strength(error: float, space: LatentSpace, karras: bool = False) -> float:
    """The least denoising strength, 0..1, whose noise has that standard deviation beside the
    latent, in UNet scale.

    The schedule is even in time, as Euler's own is: of SD1.5 and SDXL it begins at the step 1000 d
    of the 1000 that they were trained with; of a flow, at the time that its shift makes of d.
    karras: Karras's of 2022 instead (rho 7), which flows have not.
    """
    shift = _FLOW_SHIFTS.get(space.id)
    if shift is not None:
        return error / (error + shift)  # sigma = shift d / (1 - d)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, _STEPS, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)
    sigmas = ((1 - kept) / kept).sqrt()
    if not karras:
        return int(torch.searchsorted(sigmas, error)) / _STEPS
    least, most = (float(sigmas[end]) ** (1 / 7) for end in (0, -1))
    return min(max((error ** (1 / 7) - least) / (most - least), 0), 1)


def hiding_strengths(latent: Tensor, reference: Tensor, space: LatentSpace) -> dict[str, float]:
    """The least denoising strengths that hide a latent's difference from the reference.

    "strength" is for the worst band; "detail_strength" for the worst but the lowest, whose errors
    are of tone and colour more than of detail; both also with "_karras". Both latents are
    (N, C, H, W) in UNet scale.
    """
    errors = band_errors(latent - reference)
    worst = {"strength": float(errors.max()), "detail_strength": float(errors[1:].max())}
    return {
        name + suffix: least_strength(error, space, karras)
        for name, error in worst.items()
        for suffix, karras in (("", False), ("_karras", True))
    }


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) as a matrix, a frequency in each row."""
    frequencies = torch.arange(size, dtype=torch.float64)[:, None]
    places = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / size * frequencies * places) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
