"""The spatial-frequency block of SwinFIR (Zhang et al., 2022), after fast Fourier convolution
(Chi et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokens import Conv2d


class FourierUnit(nn.Module):
    """A pointwise layer on the spectrum of the whole picture: sees everything at once."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_layer = Conv2d(2 * dim, 2 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Half precision has no FFT on the CPU and, on CUDA, only one for powers of two.
        precise = torch.promote_types(x.dtype, torch.float32)
        parts = to_spectrum(x.to(precise)).to(x.dtype)
        parts = F.leaky_relu(self.conv_layer(parts), 0.2).to(precise)
        return from_spectrum(parts, x.shape[1:3]).to(x.dtype)


def to_spectrum(x: Tensor) -> Tensor:
    """(N, H, W, C) to (N, H, W // 2 + 1, 2 C): real and imaginary part, channel by channel."""
    there = x.to(_device_for(x.device))
    spectrum = torch.fft.rfft2(there, dim=(1, 2), norm="ortho")
    return torch.view_as_real(spectrum).flatten(-2).to(x.device)


def from_spectrum(parts: Tensor, size: Sequence[int]) -> Tensor:
    """Back: to (N, *size, C)."""
    there = parts.to(_device_for(parts.device)).unflatten(-1, (-1, 2)).contiguous()
    spectrum = torch.view_as_complex(there)
    x = torch.fft.irfft2(spectrum, s=tuple(size), dim=(1, 2), norm="ortho")
    return x.to(parts.device)


@cache
def _device_for(device: torch.device) -> torch.device:
    """Where to transform what is on `device`: there, or on the CPU if it has no such thing, as
    DirectML and MPS before macOS 14."""
    try:
        there = torch.ones(1, 2, 2, 1, device=device)
        parts = torch.view_as_real(torch.fft.rfft2(there, dim=(1, 2)))
        torch.fft.irfft2(torch.view_as_complex(parts.contiguous()), s=(2, 2), dim=(1, 2))
    except (RuntimeError, NotImplementedError, TypeError):
        return torch.device("cpu")
    return device


class SpectralTransform(nn.Module):
    """A Fourier unit at half the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(Conv2d(dim, dim // 2, 1), nn.LeakyReLU(0.2))
        self.fu = FourierUnit(dim // 2)
        self.conv2 = Conv2d(dim // 2, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(x + self.fu(x))


class ResidualConvolutions(nn.Module):
    """Two 3x3 convolutions with a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv2d(dim, dim), nn.LeakyReLU(0.2), Conv2d(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SpatialFrequencyBlock(nn.Module):
    """SFB: a local and a global branch, fused. Tokens (N, H, W, C) to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.S = ResidualConvolutions(dim)
        self.F = SpectralTransform(dim)
        self.fusion = Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(torch.cat((self.S(x), self.F(x)), dim=-1))
