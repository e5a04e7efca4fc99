"""Structural similarity, of one scale and of several.

Wang, Bovik, Sheikh and Simoncelli, Image quality assessment: from error visibility to structural
similarity, 2004; Wang, Simoncelli and Bovik, Multiscale structural similarity for image quality
assessment, 2003.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Loss

SIDE, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class SSIM(Loss):
    """1 - mean SSIM, over a Gaussian window of 11x11 and all places that hold it whole.

    low, high: the range of the values. The defaults are those of decoded pictures. The formula is
    made for values from 0 up: `low` is subtracted first. Latents have no such range; theirs are
    taken as they are with low=0, high=1, and then similarities below 0 are common.
    nonnegative: a channel's similarity below 0 counts as 0, and has no gradient.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0, nonnegative: bool = False) -> None:
        super().__init__()
        if not high > low:
            raise ValueError(f"high is to be above low, not {high} above {low}")
        self.low, self.high, self.nonnegative = low, high, nonnegative

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        check_side(predicted, SIDE)
        similarity, _ = ssim(predicted - self.low, target - self.low, self.high - self.low)
        return 1 - (similarity.relu() if self.nonnegative else similarity).mean()


class MultiScaleSSIM(Loss):
    """1 - mean MS-SSIM: contrast and structure at every scale, luminance at the last.

    scales: how many, 1 to 5, each half as large as the one before. All five need sides of 176;
        fewer take the first of the paper's weights, brought to a sum of 1.
    low, high: see `SSIM`.
    nonnegative: a channel's similarity below 0 at any scale counts as 0. Without it the power is
        taken of its size, and the sign kept: a power of a negative number there is not.
    """

    def __init__(
        self,
        low: float = -1.0,
        high: float = 1.0,
        nonnegative: bool = True,
        scales: int = len(SCALE_WEIGHTS),
    ) -> None:
        super().__init__()
        if not high > low:
            raise ValueError(f"high is to be above low, not {high} above {low}")
        if not 1 <= scales <= len(SCALE_WEIGHTS):
            raise ValueError(f"scales is 1 to {len(SCALE_WEIGHTS)}, not {scales}")
        self.low, self.high, self.nonnegative = low, high, nonnegative
        first = SCALE_WEIGHTS[:scales]
        self.weights = [weight / sum(first) for weight in first]

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        check_side(predicted, SIDE << (len(self.weights) - 1), " (or choose fewer scales)")
        predicted, target = predicted - self.low, target - self.low
        product = predicted.new_ones(())
        for index, weight in enumerate(self.weights):
            similarity, contrast = ssim(predicted, target, self.high - self.low)
            last = index == len(self.weights) - 1
            product = product * _power(similarity if last else contrast, weight, self.nonnegative)
            if not last:
                predicted, target = F.avg_pool2d(predicted, 2), F.avg_pool2d(target, 2)
        return 1 - product.mean()


def ssim(predicted: Tensor, target: Tensor, span: float) -> tuple[Tensor, Tensor]:
    """SSIM, and its factor of contrast and structure: each channel's mean, (N, C).

    span: the difference of the largest and the smallest possible value.
    """
    small, medium = (K1 * span) ** 2, (K2 * span) ** 2
    images = torch.stack(
        [predicted, target, predicted * predicted, target * target, predicted * target]
    )
    mean_p, mean_t, square_p, square_t, product = _blurred(images)
    variances = square_p - mean_p**2 + square_t - mean_t**2
    covariance = product - mean_p * mean_t
    contrast = (2 * covariance + medium) / (variances + medium)
    luminance = (2 * mean_p * mean_t + small) / (mean_p**2 + mean_t**2 + small)
    return (luminance * contrast).mean((-2, -1)), contrast.mean((-2, -1))


def check_side(images: Tensor, least: int, advice: str = "") -> None:
    """Raises `ValueError` for images that are smaller than `least` along a side."""
    if min(images.shape[-2:]) < least:
        raise ValueError(
            f"images of {images.shape[-2]}x{images.shape[-1]} are too small for this structural "
            f"similarity: choose a larger crop, so that sides are {least} or more{advice}"
        )


def _blurred(images: Tensor) -> Tensor:
    """(..., H, W) -> (..., H - 10, W - 10): the Gaussian's means."""
    line = torch.arange(SIDE, device=images.device, dtype=images.dtype) - SIDE // 2
    window = torch.exp(-(line**2) / (2 * SIGMA**2))
    window = (window / window.sum()).view(1, 1, 1, SIDE)
    single = images.reshape(-1, 1, *images.shape[-2:])
    single = F.conv2d(F.conv2d(single, window), window.transpose(-2, -1))
    return single.view(*images.shape[:-2], *single.shape[-2:])


def _power(base: Tensor, exponent: float, nonnegative: bool) -> Tensor:
    # Of 1 where it is not used: the power's gradient at 0 is infinite, and 0 times it no number.
    unused = base <= 0 if nonnegative else base == 0
    size = torch.where(unused, torch.ones_like(base), base.abs()) ** exponent
    return torch.where(unused, torch.zeros_like(base), size * base.sign())
