"""The denoising strength that hides an error: on errors whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from lib_latent_upscale.spaces import FLUX, SD3, SD15, SDXL, SPACES, LatentSpace
from lib_latent_upscale.training import strength


def white(sigma: float, *shape: int) -> torch.Tensor:
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_noise_has_its_own_strength_in_every_band() -> None:
    errors = strength.band_errors(white(0.3, 8, 4, 64, 48))
    assert errors.shape == (strength.BANDS,)
    assert errors.numpy() == pytest.approx(0.3, rel=0.05)


def test_a_wave_is_in_its_band_alone() -> None:
    height, width, row, column = 32, 24, 10, 3
    down = torch.cos(math.pi / height * row * (torch.arange(height) + 0.5))
    across = torch.cos(math.pi / width * column * (torch.arange(width) + 0.5))
    error = (0.7 * down[:, None] * across).expand(2, 4, height, width)
    places = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    band = np.minimum((places * strength.BANDS).astype(int), strength.BANDS - 1)
    own = band[row, column]
    assert own == 2
    # A cosine's energy is half of its height's square, along each axis.
    energy = 0.7**2 * height * width / 4
    expected = np.zeros(strength.BANDS)
    expected[own] = math.sqrt(energy / (band == own).sum())
    assert strength.band_errors(error).numpy() == pytest.approx(expected, abs=1e-6)


def test_all_power_is_in_the_bands() -> None:
    error = white(1.0, 1, 1, 20, 28)
    coefficients = dctn(error[0, 0].double().numpy(), norm="ortho")
    places = np.hypot(np.arange(20)[:, None] / 20, np.arange(28) / 28)
    band = np.minimum((places * 8).astype(int), 7)
    expected = [math.sqrt(np.square(coefficients[band == one]).mean()) for one in range(8)]
    assert strength.band_errors(error).numpy() == pytest.approx(expected, rel=1e-6)


def test_a_small_latent_has_empty_bands() -> None:
    errors = strength.band_errors(torch.ones(1, 4, 2, 2))
    # A plain one is one coefficient.
    assert errors.numpy() == pytest.approx([2] + [0] * (strength.BANDS - 1), abs=1e-12)


def sigma_of(space: LatentSpace, at: float) -> float:
    """The noise beside the latent that a pass of that strength begins with."""
    if space in (SD3, FLUX):
        shift = 3.0 if space is SD3 else math.e**1.15
        time = shift * at / (1 + (shift - 1) * at)
        return time / (1 - time)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.prod(1 - betas[: round(1000 * at) + 1])
    return float(np.sqrt((1 - kept) / kept))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("at", [0.05, 0.3, 0.5, 0.9])
def test_the_schedule_of_the_space(space: LatentSpace, at: float) -> None:
    sigma = sigma_of(space, at)
    assert strength.least_strength(sigma * 0.9999, space) == pytest.approx(at, abs=1e-3)
    assert strength.least_strength(sigma * 1.01, space) > at


def test_karras_has_less_noise_at_the_same_strength() -> None:
    least, most = sigma_of(SD15, 0), sigma_of(SD15, 0.999)
    for at in (0.0, 0.2, 0.5, 0.7, 1.0):
        sigma = (least ** (1 / 7) + at * (most ** (1 / 7) - least ** (1 / 7))) ** 7
        assert strength.least_strength(sigma, SDXL, karras=True) == pytest.approx(at)
    assert strength.least_strength(0.5, SD15, karras=True) > strength.least_strength(0.5, SD15)
    assert strength.least_strength(0, SD15, karras=True) == 0
    assert strength.least_strength(20, SD15, karras=True) == 1
    assert strength.least_strength(0.5, SD3, karras=True) == strength.least_strength(0.5, SD3)


def test_known_noise_levels() -> None:
    # The first and last of SD1.5's schedule, as samplers print them.
    assert strength.least_strength(0.0291, SD15) == 0
    assert strength.least_strength(14.61, SDXL) == pytest.approx(0.999)
    assert strength.least_strength(20, SD15) == 1
    assert strength.least_strength(3, SD3) == 0.5
    assert strength.least_strength(0, FLUX) == 0


def test_the_worst_band_decides() -> None:
    reference = white(1.0, 1, 4, 32, 32)
    equal = strength.hiding_strengths(reference, reference, SD15)
    assert len(equal) == 4 and not any(equal.values())
    noisy = reference + white(0.2, 1, 4, 32, 32)
    toned = noisy + 0.5  # everywhere: of the lowest band alone
    detail = float(strength.band_errors(noisy - reference)[1:].max())
    lowest = float(strength.band_errors(toned - reference)[0])
    assert detail < 0.3 < 2 < lowest
    found = strength.hiding_strengths(toned, reference, SD15)
    expected = {
        "strength": strength.least_strength(lowest, SD15),
        "strength_karras": strength.least_strength(lowest, SD15, karras=True),
        "detail_strength": strength.least_strength(detail, SD15),
        "detail_strength_karras": strength.least_strength(detail, SD15, karras=True),
    }
    assert found == pytest.approx(expected, abs=1e-3)  # 0.5 more is rounded otherwise
