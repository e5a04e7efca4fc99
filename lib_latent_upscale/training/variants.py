"""Changes to a network that people have tried, or wanted to try, in training.

- fast Fourier convolutions first and last: LaMa (Suvorov et al., WACV 2022), after Chi et al.,
  NeurIPS 2020;
- MBConv in place of the body's convolutions: MobileNetV2 (Sandler et al., CVPR 2018) with
  squeeze-and-excitation, as in EfficientNet (Tan and Le, ICML 2019);
- dropout of channels before the last convolution: Kong et al., "Reflash dropout in image
  super-resolution", CVPR 2022. It has no weights: the trained file is one of the plain network;
- ReLUs with a gradient below zero, so that none is dead. Nor have they any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures.layers.kernels import Activation, activate
from ..architectures.layers.tokens import Conv2d as TokenConv2d
from ..architectures.layers.tokens import to_picture, to_tokens
from .errors import TrainingError


class FourierUnit(nn.Module):
    """A pointwise convolution of the picture's spectrum, (N, C, H, W) to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * dim, 2 * dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        # Half precision has no FFT on the CPU and, on CUDA, only one for powers of two.
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft2(precise, norm="ortho")
        parts = torch.cat((spectrum.real, spectrum.imag), dim=1)
        parts = F.relu(self.norm(self.conv(parts))).to(precise.dtype)
        real, imaginary = parts.chunk(2, dim=1)
        spectrum = torch.complex(real.contiguous(), imaginary.contiguous())
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho").to(x.dtype)


class SpectralTransform(nn.Module):
    """LaMa's global path: a Fourier unit at half the width, with a skip round it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = max(1, out_channels // 2)
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.unit = FourierUnit(half)
        self.restore = nn.Conv2d(half, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.restore(x + self.unit(x))


class FastFourierConvolution(nn.Module):
    """LaMa's FFC: half of the channels are local, half global, and each hears of the other.

    (N, in, H, W) to (N, out, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 2:
            raise TrainingError("a fast Fourier convolution wants two channels or more")
        self.local_in = in_channels - in_channels // 2
        global_in, global_out = in_channels // 2, out_channels // 2
        local_out = out_channels - global_out
        self.local_to_local = nn.Conv2d(self.local_in, local_out, 3, 1, 1)
        self.local_to_global = nn.Conv2d(self.local_in, global_out, 3, 1, 1)
        self.global_to_local = nn.Conv2d(global_in, local_out, 3, 1, 1)
        self.global_to_global = SpectralTransform(global_in, global_out)

    def forward(self, x: Tensor) -> Tensor:
        local, wide = x[:, : self.local_in], x[:, self.local_in :]
        return torch.cat(
            (
                self.local_to_local(local) + self.global_to_local(wide),
                self.local_to_global(local) + self.global_to_global(wide),
            ),
            dim=1,
        )


class MBConv(nn.Module):
    """Inverted bottleneck: widen, depthwise 3x3, squeeze-and-excitation, narrow; then the skip.

    (N, dim, H, W) to the same shape.
    """

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        hidden, squeezed = expansion * dim, max(1, dim // 4)
        self.widen = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
        )
        self.excite = nn.Sequential(
            nn.Conv2d(hidden, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, hidden, 1), nn.Sigmoid()
        )
        self.narrow = nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.depthwise(self.widen(x))
        return x + self.narrow(wide * self.excite(wide.mean(dim=(2, 3), keepdim=True)))


class OnTokens(nn.Module):
    """A layer of pictures where the network has tokens, (N, H, W, C), with what it adds to them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Tensor, *, activation: Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        x = to_tokens(self.layer(to_picture(x)))
        return activate(x if residual is None else residual + x, activation)


class SoftReluConv2d(TokenConv2d):
    """A convolution whose ReLU, where it stands alone behind it, lets a part of the gradient pass
    below zero: see `use_soft_relus`."""

    slope: float

    def forward(
        self, x: Tensor, *, activation: Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        if activation != "relu" or residual is not None or not torch.is_grad_enabled():
            return super().forward(x, activation=activation, residual=residual)
        result: Tensor = _SoftRelu.apply(super().forward(x), self.slope)
        return result


class _SoftRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        result = F.relu(x)
        ctx.save_for_backward(result)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(gradient, result, ctx.slope, True), None


def use_fourier_ends(network: nn.Module) -> None:
    """Puts fast Fourier convolutions in place of `conv_first` and `conv_last`."""
    for name in ("conv_first", "conv_last"):
        conv = getattr(network, name, None)
        if not isinstance(conv, nn.Conv2d):
            raise TrainingError(
                f"{type(network).__name__} has no {name} to put a fast Fourier convolution in "
                "place of; DAT, SwinFIR, DRCT and compact have"
            )
        layer = FastFourierConvolution(conv.in_channels, conv.out_channels)
        setattr(network, name, OnTokens(layer) if isinstance(conv, TokenConv2d) else layer)


def use_mbconv(network: nn.Module) -> None:
    """Puts MBConv in place of the 3x3 convolutions of the body: those that keep the width."""
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.kernel_size != (3, 3):
                continue
            if conv.in_channels == conv.out_channels:
                layer = MBConv(conv.in_channels)
                setattr(parent, name, OnTokens(layer) if isinstance(conv, TokenConv2d) else layer)


def use_dropout(network: nn.Module, rate: float) -> None:
    """Drops channels of what the last convolution is given, in training."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]

    def drop(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        if not isinstance(module, TokenConv2d):
            return (F.dropout2d(x, rate, module.training), *others)
        return (to_tokens(F.dropout2d(to_picture(x), rate, module.training)), *others)

    last.register_forward_pre_hook(drop)


def use_soft_relus(network: nn.Module, slope: float) -> None:
    """Lets ReLUs whose input is below zero learn as if they were leaky ones of that slope.

    What the network computes stays the same. A ReLU that is never above zero has no gradient and
    would stay so for ever; with a part of the gradient it comes back where that helps.
    """
    if getattr(network, "architecture", "") not in _WITH_RELUS:
        raise TrainingError(
            f"{type(network).__name__} has no ReLU to make soft; {', '.join(_WITH_RELUS)} have"
        )
    for module in network.modules():
        if isinstance(module, TokenConv2d):
            module.__class__ = SoftReluConv2d
            module.slope = slope  # type: ignore[assignment]


_WITH_RELUS = ("halfway", "city96")
