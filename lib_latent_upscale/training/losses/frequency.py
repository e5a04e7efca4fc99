"""The loss in the frequency domain."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Loss

NORMS = ("ortho", "backward", "forward")


class FFT(Loss):
    """Mean modulus of the difference of the two-dimensional Fourier transforms.

    norm: as in torch.fft. "ortho" makes the loss as large as L1 whatever the size; "backward",
    the plain sum, makes it larger by the square root of H * W.
    Every frequency counts the same, while in L1 the few low ones, which natural images have most
    energy in, do. See Cho et al., Rethinking coarse-to-fine approach in single image deblurring,
    2021, section 3.4.
    """

    def __init__(self, norm: str = "ortho") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        self.norm = norm

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        # The transform is linear: one of the difference is the difference of two.
        return torch.fft.fft2(predicted - target, norm=self.norm).abs().mean()
