"""The tiny encoders and decoders of the real latent spaces, for making training pairs.

Networks: TAESD, TAESDXL, TAESD3 and TAEF1 by Ollin Boer Bohan (MIT,
https://github.com/madebyollin/taesd). This module is written from their published structure: a
parameter's key is the index of its layer in a sequence, ``3.conv.2.weight`` being the third layer
(``conv.0`` ReLU ``conv.2`` ReLU ``conv.4``) of the block at index 3. The weights are not part of
this project; they are read from wherever the reader of this keeps them.

Pictures are (N, 3, H, W), RGB in 0..1. Latents are (N, C, H/8, W/8) in UNet scale, with C = 4 for
SD1.5 and SDXL and 16 for SD3 and FLUX.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FACTOR = 8
"""Picture pixels per latent pixel along each side."""

_Codec = TypeVar("_Codec", bound=nn.Module)


class Block(nn.Module):
    """Residual block: ReLU(x + conv(ReLU(conv(ReLU(conv(x)))))), (N, W, h, w) -> (N, W, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width),
            nn.ReLU(),
            _conv(width, width),
            nn.ReLU(),
            _conv(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, W, h, w) -> the same shape."""
        return torch.relu(x + self.conv(x))


class SoftClamp(nn.Module):
    """3 * tanh(x / 3): latents far outside the usual range are pulled in before decoding."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape, in -3..3."""
        return 3 * torch.tanh(x / 3)


class Encoder(nn.Sequential):
    """Picture (N, 3, H, W) in 0..1 -> latent (N, C, H/8, W/8) in UNet scale.

    H and W are to be multiples of 8. One block at full size, then three halvings (strided
    convolutions without bias) with three blocks after each.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        layers: list[nn.Module] = [_conv(3, width), Block(width)]
        for _ in range(3):
            layers.append(_conv(width, width, stride=2, bias=False))
            layers.extend(Block(width) for _ in range(3))
        layers.append(_conv(width, channels))
        super().__init__(*layers)
        self.channels = channels

    def forward(self, input: Tensor) -> Tensor:
        """Picture (N, 3, H, W) in 0..1 -> latent (N, C, H/8, W/8) in UNet scale."""
        if input.shape[-2] % FACTOR or input.shape[-1] % FACTOR:
            raise ValueError(f"picture sides must be multiples of 8, not {tuple(input.shape)}")
        return super().forward(input)


class Decoder(nn.Sequential):
    """Latent (N, C, h, w) in UNet scale -> picture (N, 3, 8h, 8w) in 0..1.

    Three doublings (nearest neighbour, then a convolution without bias) with three blocks before
    each, and one block at full size.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        layers: list[nn.Module] = [SoftClamp(), _conv(channels, width), nn.ReLU()]
        for _ in range(3):
            layers.extend(Block(width) for _ in range(3))
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(_conv(width, width, bias=False))
        layers.extend([Block(width), _conv(width, 3)])
        super().__init__(*layers)
        self.channels = channels

    def forward(self, input: Tensor) -> Tensor:
        """Latent (N, C, h, w) in UNet scale -> picture (N, 3, 8h, 8w), clamped to 0..1."""
        return super().forward(input).clamp(0, 1)


def encoder_from_state_dict(state_dict: Mapping[str, Tensor]) -> Encoder:
    """An encoder with these weights, float32, frozen, in eval mode; C is read off them."""
    last = max((key for key in state_dict if key.endswith(".weight")), key=_index, default="")
    if not last:
        raise ValueError("no TAESD encoder: the file holds no weights")
    return _filled(Encoder(state_dict[last].shape[0], state_dict[last].shape[1]), state_dict)


def decoder_from_state_dict(state_dict: Mapping[str, Tensor]) -> Decoder:
    """A decoder with these weights, float32, frozen, in eval mode; C is read off them."""
    if "1.weight" not in state_dict:
        raise ValueError("no TAESD decoder: '1.weight' is missing")
    first = state_dict["1.weight"]
    return _filled(Decoder(first.shape[1], first.shape[0]), state_dict)


def load_encoder(path: str | Path) -> Encoder:
    """The encoder in a .safetensors file such as ``taesd_encoder.safetensors``."""
    return encoder_from_state_dict(load_file(path))


def load_decoder(path: str | Path) -> Decoder:
    """The decoder in a .safetensors file such as ``taesd_decoder.safetensors``."""
    return decoder_from_state_dict(load_file(path))


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def _index(key: str) -> int:
    head = key.split(".", 1)[0]
    return int(head) if head.isdigit() else -1


def _filled(module: _Codec, state_dict: Mapping[str, Tensor]) -> _Codec:
    module.load_state_dict({key: value.float() for key, value in state_dict.items()})
    return module.eval().requires_grad_(False)
