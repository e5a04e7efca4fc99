"""The high-frequency error norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Loss

NORMS = ("l1", "l2")


def log_kernel(size: int, sigma: float) -> Tensor:
    """Laplacian of Gaussian, (size, size), float64: its sum is 0.

    (r^2 - 2 sigma^2) / sigma^4 times a Gaussian whose sum is 1, less the mean that the cut at
    the kernel's border leaves: MATLAB's fspecial("log").
    """
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    square = line[:, None] ** 2 + line**2
    gaussian = torch.exp(-square / (2 * sigma**2))
    kernel = (square - 2 * sigma**2) / sigma**4 * gaussian / gaussian.sum()
    return kernel - kernel.mean()


class HFEN(Loss):
    """Mean absolute (L1) or squared (L2) difference of the Laplacian-of-Gaussian responses.

    size, sigma: the kernel's side and width in pixels; 15 and 1.5 are those of the paper,
    Ravishankar and Bresler, MR image reconstruction from highly undersampled k-space data by
    dictionary learning, 2011. A sigma of 2.5 looks at coarser edges.
    Each channel by itself; the border is repeated outwards.
    """

    kernel: Tensor

    def __init__(self, norm: str = "l1", size: int = 15, sigma: float = 1.5) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        if size < 3 or size % 2 == 0 or not sigma > 0:
            raise ValueError(
                f"size is an odd number from 3 up and sigma above 0, not {size} and {sigma}"
            )
        self.norm = norm
        self.register_buffer("kernel", log_kernel(size, sigma).float(), persistent=False)

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        response = self.response(predicted - target)  # linear, as the Fourier transform
        return response.abs().mean() if self.norm == "l1" else response.square().mean()

    def response(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape: what the filter answers."""
        kernel = self.kernel.to(images)
        single = images.flatten(0, 1)[:, None]
        margin = kernel.shape[-1] // 2
        single = F.pad(single, (margin,) * 4, mode="replicate")
        return F.conv2d(single, kernel[None, None]).view_as(images)
