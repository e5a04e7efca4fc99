"""The figures of merit, beside values computed without torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_latent_upscale.training import metrics


def pictures(seed: int = 0, side: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(1, 3, side, side + 4, generator=generator)
    noise = torch.randn(reference.shape, generator=generator)
    return (reference + 0.1 * noise).clamp(0, 1), reference


def windows(channel: np.ndarray, side: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(channel, (side, side))


def filtered(channel: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return (windows(channel, len(kernel)) * kernel).sum((-2, -1))


def gaussian(side: int, sigma: float) -> np.ndarray:
    x = np.arange(side) - side // 2
    kernel = np.exp(-(x[:, None] ** 2 + x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def test_psnr_is_that_of_the_definition() -> None:
    reference = torch.full((1, 3, 8, 8), 0.5)
    assert metrics.psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(reference, reference) == pytest.approx(120)


def test_ssim_is_that_of_the_paper() -> None:
    picture, reference = pictures()
    window, c1, c2, found = gaussian(11, 1.5), 0.01**2, 0.03**2, []
    for x, y in zip(picture[0].double().numpy(), reference[0].double().numpy()):
        mean_x, mean_y = filtered(x, window), filtered(y, window)
        # Weighted moments about the window's own means, as the paper writes them.
        dx = windows(x, 11) - mean_x[..., None, None]
        dy = windows(y, 11) - mean_y[..., None, None]
        var_x, var_y, both = ((window * p).sum((-2, -1)) for p in (dx * dx, dy * dy, dx * dy))
        found.append(
            (2 * mean_x * mean_y + c1)
            * (2 * both + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        )
    assert metrics.ssim(picture, reference) == pytest.approx(np.mean(found), abs=1e-9)
    assert metrics.ssim(reference, reference) == pytest.approx(1)


def test_hfen_is_the_relative_norm_of_the_laplacian_of_gaussian() -> None:
    picture, reference = pictures()
    x = np.arange(15) - 7
    square = x[:, None] ** 2 + x**2
    kernel = (square - 2 * 1.5**2) / 1.5**4 * gaussian(15, 1.5)
    kernel -= kernel.mean()
    error = norm = 0.0
    for a, b in zip(picture[0].double().numpy(), reference[0].double().numpy()):
        error += (filtered(a - b, kernel) ** 2).sum()
        norm += (filtered(b, kernel) ** 2).sum()
    assert metrics.hfen(picture, reference) == pytest.approx(math.sqrt(error / norm), rel=1e-9)
    plain = torch.full_like(reference, 0.3)
    assert metrics.hfen(plain, reference) == pytest.approx(1, abs=1e-6)
    assert metrics.hfen(reference, reference) == 0


def test_sharpness_is_the_laplacians_energy() -> None:
    picture = torch.zeros(1, 1, 3, 3)
    picture[..., 1, 1] = 1
    assert metrics.sharpness(picture.expand(1, 3, 3, 3)) == pytest.approx(16)
    x = torch.arange(5.0).expand(1, 3, 5, 5)
    assert metrics.sharpness(x) == pytest.approx(0, abs=1e-12)  # a slope has no Laplacian


@given(st.floats(0.1, 3))
def test_contrast_changes_sharpness_by_its_square(contrast: float) -> None:
    _, reference = pictures(side=12)
    ratio = metrics.sharpness_ratio(reference * contrast, reference)
    assert ratio == pytest.approx(contrast**2, rel=1e-5)


def test_differences_of_latents() -> None:
    predicted, target = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0])
    assert metrics.l1(predicted, target) == pytest.approx(1.5)
    assert metrics.mse(predicted, target) == pytest.approx(2.5)


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    small = torch.zeros(1, 3, 10, 20)
    with pytest.raises(ValueError, match="too small"):
        metrics.ssim(small, small)
