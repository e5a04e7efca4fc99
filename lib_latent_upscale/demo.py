"""The main job on a real latent of a real picture, beside bicubic interpolation.

The picture is scikit-image's astronaut (NASA, public domain); its latents at 256 and 512 pixels
lie in `assets/`, and so does the small decoder that makes pictures of latents here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from . import latent_files
from .inference import load
from .preview import load_preview_decoder
from .spaces import SD15

if TYPE_CHECKING:
    from PIL.Image import Image

ASSETS = Path(__file__).resolve().parent / "assets"
_MODEL = "bundled-sd15"
_GAP, _HEADING = 8, 40


def run(out: Path) -> dict[str, float]:
    """Writes the panels to `out`, prints each one's figures, and returns the PSNRs in dB.

    PSNR compares a decoded result with the decoded latent of the large picture, both by the
    preview decoder; docs/preview-decoder.md says how far it can be trusted.
    """
    small = latent_files.read(ASSETS / "astronaut-256.safetensors", SD15)
    large = latent_files.read(ASSETS / "astronaut-512.safetensors", SD15)
    decoder = load_preview_decoder(SD15)
    upscaler = load(_MODEL)
    height, width = large.shape[-2:]
    size = (height, width)

    with torch.no_grad():
        reference = decoder(large)
        panels = [("the large picture's own latent", reference)]
        figures = {}
        methods: dict[str, Callable[[], Tensor]] = {
            "bicubic": lambda: F.interpolate(small, size=size, mode="bicubic", antialias=True),
            _MODEL: lambda: upscaler(small, size),
        }
        for name, method in methods.items():
            result, seconds = _timed(method)
            picture = decoder(result)
            figures[name] = _psnr(picture, reference)
            caption = f"{name}: {figures[name]:.2f} dB, {1000 * seconds:.1f} ms"
            panels.insert(-1, (caption, picture))
            print(f"{tuple(small.shape)} to {tuple(result.shape)} with {caption}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _sheet(panels).save(out)
    print(f"{out}: {', '.join(caption for caption, _ in panels)}")
    return figures


def _timed(method: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What the method gives, and the median of its time in seconds, warm."""
    result = method()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        method()
        times.append(time.perf_counter() - started)
    return result, sorted(times)[len(times) // 2]


def _psnr(picture: Tensor, reference: Tensor) -> float:
    return -10 * math.log10(float((picture - reference).square().mean()))


def _sheet(panels: list[tuple[str, Tensor]]) -> Image:
    """The pictures (1, 3, H, W) side by side with their captions above."""
    from PIL import Image, ImageDraw, ImageFont

    try:
        font = ImageFont.load_default(size=20)
    except (TypeError, OSError):  # Pillow before 10.1, or one without FreeType
        font = ImageFont.load_default()
    height, width = panels[0][1].shape[-2:]
    total = len(panels) * (width + _GAP) + _GAP
    sheet = Image.new("RGB", (total, height + _HEADING + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(panels):
        left = _GAP + index * (width + _GAP)
        pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
        sheet.paste(Image.fromarray(pixels), (left, _HEADING))
        draw.text((left, _GAP), caption, fill="black", font=font)
    return sheet
