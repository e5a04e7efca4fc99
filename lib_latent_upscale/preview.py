"""Small decoders of our own, one for each latent space, to look at results without a VAE.

They are plain convolutional networks trained to give the picture that TAESD's decoders give (see
``training/preview.py``); most of the work is done at the latent's own size, so they take a
small part of TAESD's time. They serve the demo and quick comparisons, not final pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from .spaces import LatentSpace

_ASSETS = Path(__file__).parent / "assets"
STAGES = ((64, 3), (32, 3), (24, 2))
"""(width, residual blocks) at 1, 2 and 4 times the latent's size."""


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(x))), (N, W, h, w) -> (N, W, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, W, h, w) -> the same shape."""
        return x + self.b(nn.functional.silu(self.a(x)))


class PreviewDecoder(nn.Module):
    """Latent (N, C, h, w) in UNet scale -> picture (N, 3, 8h, 8w), RGB in 0..1.

    Three stages of residual blocks, at 1, 2 and 4 times the latent's size, each followed by a
    convolution and a pixel shuffle that doubles the size; the last one gives the picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [width for width, _ in STAGES]
        self.entry = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
            for width, blocks in STAGES
        )
        # 4 outputs per channel of what follows: pixel_shuffle makes 2x2 pixels of them.
        self.exits = nn.ModuleList(
            nn.Conv2d(width, 4 * following, 3, padding=1)
            for width, following in zip(widths, [*widths[1:], 3])
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(N, C, h, w) in UNet scale -> (N, 3, 8h, 8w), clamped to 0..1."""
        return self.unclamped(latent).clamp(0, 1)

    def unclamped(self, latent: Tensor) -> Tensor:
        """The same without the clamp, which would give training no gradient beyond 0..1."""
        # TAESD's soft clamp: a latent's far outliers do not spread over the picture.
        x = self.entry(3 * torch.tanh(latent / 3))
        for stage, leave in zip(self.stages, self.exits):
            x = pixel_shuffle(leave(nn.functional.silu(stage(x))), 2)
        return x + 0.5  # the network starts from mid-grey


def preview_weights(space: LatentSpace) -> Path:
    """The file of the trained decoder of a space."""
    return _ASSETS / f"preview-{space.id}.safetensors"


def load_preview_decoder(space: LatentSpace) -> PreviewDecoder:
    """The trained decoder of a space, float32 on the CPU, frozen and in eval mode.

    The files hold float16 weights, which is exact enough: see ``training/preview.py``.
    """
    decoder = PreviewDecoder(space.channels)
    weights = load_file(preview_weights(space))
    decoder.load_state_dict({key: value.float() for key, value in weights.items()})
    return decoder.eval().requires_grad_(False)
