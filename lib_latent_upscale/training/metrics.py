"""Figures of merit: how near a picture is to a reference, and how sharp it is beside it.

Pictures are (N, 3, H, W) in 0..1; every figure is one number for the whole batch, computed in
float64. Give one picture at a time for a figure of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import structural
from .losses.hfen import log_kernel


def l1(predicted: Tensor, target: Tensor) -> float:
    """Mean absolute difference."""
    return float((predicted.double() - target.double()).abs().mean())


def mse(predicted: Tensor, target: Tensor) -> float:
    """Mean squared difference."""
    return float((predicted.double() - target.double()).square().mean())


def psnr(picture: Tensor, reference: Tensor) -> float:
    """Peak signal to noise ratio in dB, the peak being 1; 120 at most, for equal pictures."""
    return -10 * math.log10(max(mse(picture, reference), 1e-12))


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al., 2004), where the window fits whole; 1 for equal pictures.

    Raises `ValueError` for pictures smaller than the window, 11x11.
    """
    structural.check_side(picture, structural.SIDE)
    return float(structural.ssim(picture.double(), reference.double(), span=1)[0].mean())


def hfen(picture: Tensor, reference: Tensor) -> float:
    """High-frequency error norm (Ravishankar and Bresler, 2011): 0 is right.

    The L2 norm of the difference's Laplacian of Gaussian (15x15, sigma 1.5), over that of the
    reference's. So a picture without any detail has 1.
    """
    kernel = log_kernel(15, 1.5)
    difference = _filtered(picture.double() - reference.double(), kernel)
    return float(difference.norm() / _filtered(reference.double(), kernel).norm().clamp_min(1e-12))


def sharpness(picture: Tensor) -> float:
    """The energy of the picture's Laplacian: the mean square of its 3x3 filter's response."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    return float(_filtered(picture.double(), kernel).square().mean())


def sharpness_ratio(picture: Tensor, reference: Tensor) -> float:
    """The picture's sharpness over the reference's: 1 is right, less is blur, more is artefacts."""
    return sharpness(picture) / max(sharpness(reference), 1e-12)


def _filtered(pictures: Tensor, kernel: Tensor) -> Tensor:
    """Every channel by itself, where the kernel lies wholly inside."""
    weight = kernel.to(pictures).expand(pictures.shape[1], 1, *kernel.shape)
    return F.conv2d(pictures, weight, groups=pictures.shape[1])
