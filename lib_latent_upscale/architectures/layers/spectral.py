"""The spatial-frequency block of SwinFIR (Zhang et al., 2022), after fast Fourier convolution
(Chi et al., NeurIPS 2020)."""

from __future__ import annotations

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
        height, width = x.shape[1:3]
        # Half precision has no FFT on the CPU and, on CUDA, only one for powers of two.
        precise = torch.promote_types(x.dtype, torch.float32)
        spectrum = torch.fft.rfft2(x.to(precise), dim=(1, 2), norm="ortho")
        parts = torch.view_as_real(spectrum).flatten(-2)  # real and imaginary, channel by channel
        parts = F.leaky_relu(self.conv_layer(parts.to(x.dtype)), 0.2).to(precise)
        spectrum = torch.view_as_complex(parts.unflatten(-1, (-1, 2)).contiguous())
        return torch.fft.irfft2(spectrum, s=(height, width), dim=(1, 2), norm="ortho").to(x.dtype)


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
