"""Which order of passes and resampling is best for targets off a network's own factor.

    python -m lib_latent_upscale.training.sizes --pictures DIR --codecs DIR [--model ID_OR_FILE ...]

For every picture and factor, the latent of the small picture is brought to the size of the large
one in several orders. Printed are two means over the pictures, of the decoded results against the
decoded large latent: PSNR, and the ratio of their sharpness (1 is right, less is blur, more is
artefacts). docs/sizes.md keeps what this gave.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..inference import AFTER_PASSES, LatentUpscaler, load
from ..resample import resample
from . import metrics
from .codecs import load_decoder, load_encoder

# Factor: sides in pixels of the large and the small picture, both multiples of 8.
SIDES = {
    1.25: (400, 320),
    1.5: (384, 256),
    1.75: (392, 224),
    3.0: (384, 128),
    4.0: (384, 96),
}

Size = tuple[int, int]
Order = Callable[[LatentUpscaler, Tensor, Size], Tensor]


def one_pass(upscaler: LatentUpscaler, latent: Tensor) -> Tensor:
    return upscaler(latent, upscaler.network.output_size(*latent.shape[-2:]))


def bicubic(latent: Tensor, size: Size) -> Tensor:
    return F.interpolate(latent, size=size, mode="bicubic", antialias=True)


def past_target(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    while latent.shape[-1] < size[1]:
        latent = one_pass(upscaler, latent)
    return latent


def past_then_down(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """Passes until the target is reached or passed, then down to it."""
    return resample(past_target(upscaler, latent, size), size, AFTER_PASSES)


def past_then_fully_antialiased(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """The same with full antialiasing."""
    return resample(past_target(upscaler, latent, size), size)


def past_then_sharp(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """The same without antialiasing."""
    return resample(past_target(upscaler, latent, size), size, antialias=0)


def past_then_bicubic(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """The same with torch's antialiased bicubic resampling."""
    return bicubic(past_target(upscaler, latent, size), size)


def resample_then_pass(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """Down first, so that the passes end at the target."""
    passes, reached = 0, float(latent.shape[-1])
    factor = upscaler.network.scale or 2.0
    while reached < size[1]:
        passes, reached = passes + 1, reached * factor
    first = round(size[0] / factor**passes), round(size[1] / factor**passes)
    latent = resample(latent, first)
    for _ in range(passes):
        latent = one_pass(upscaler, latent)
    return resample(latent, size)


def between_passes(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """Down before the last pass, so that it ends at the target."""
    factor = upscaler.network.scale or 2.0
    while latent.shape[-1] * factor < size[1]:
        latent = one_pass(upscaler, latent)
    latent = resample(latent, (round(size[0] / factor), round(size[1] / factor)))
    return resample(one_pass(upscaler, latent), size)


def short_then_up(upscaler: LatentUpscaler, latent: Tensor, size: Size) -> Tensor:
    """As many passes as stay below the target, then up to it."""
    while upscaler.network.output_size(*latent.shape[-2:])[1] <= size[1]:
        latent = one_pass(upscaler, latent)
    return resample(latent, size)


ORDERS: dict[str, Order] = {
    "passes, then down": past_then_down,
    "passes, then down, full antialiasing": past_then_fully_antialiased,
    "passes, then down, no antialiasing": past_then_sharp,
    "passes, then down, bicubic": past_then_bicubic,
    "down, then passes": resample_then_pass,
    "down before the last pass": between_passes,
    "passes, then up": short_then_up,
}


def crops(folder: Path, side: int) -> list[Image.Image]:
    """The middle of every picture of the folder, brought to 7/6 of `side` if it is larger."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            continue
        picture = Image.open(path).convert("RGBA")
        ground = Image.new("RGBA", picture.size, (160, 160, 160, 255))
        ground.alpha_composite(picture)
        picture = ground.convert("RGB")
        short = min(picture.size)
        if short < side:
            continue
        if short > side * 7 // 6:
            ratio = side * 7 / 6 / short
            size = round(picture.width * ratio), round(picture.height * ratio)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        found.append(picture.crop((left, top, left + side, top + side)))
    return found


def as_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--codecs", type=Path, required=True, help="the folder of TAESD's files")
    parser.add_argument("--model", nargs="+", default=["bundled-sd15"], help="ids or files, SD1.5")
    parser.add_argument("--factor", type=float, nargs="+", choices=SIDES, default=list(SIDES))
    options = parser.parse_args()
    encoder = load_encoder(options.codecs / "taesd_encoder.safetensors")
    decoder = load_decoder(options.codecs / "taesd_decoder.safetensors")
    upscalers = [load(model) for model in options.model]
    for factor in options.factor:
        large, small = SIDES[factor]
        scores: dict[str, list[tuple[float, float]]] = {}
        for picture in crops(options.pictures, large):
            target = encoder(as_tensor(picture))
            latent = encoder(as_tensor(picture.resize((small, small), Image.Resampling.LANCZOS)))
            reference = decoder(target)
            size = (large // 8, large // 8)
            results = {"bicubic": bicubic(latent, size), "Lanczos": resample(latent, size)}
            for upscaler in upscalers:
                for name, order in ORDERS.items():
                    results[f"{upscaler.name}: {name}"] = order(upscaler, latent, size)
            seen: list[
                tuple[Tensor, tuple[float, float]]
            ] = []  # orders often agree; decoding is what is slow
            for name, result in results.items():
                score = next((score for other, score in seen if torch.equal(other, result)), None)
                if score is None:
                    decoded = decoder(result)
                    score = (
                        metrics.psnr(decoded, reference),
                        metrics.sharpness_ratio(decoded, reference),
                    )
                    seen.append((result, score))
                scores.setdefault(name, []).append(score)
        for name, values in scores.items():
            decibels, ratio = np.mean(values, axis=0)
            print(f"x{factor:<5g} {name:45} {decibels:6.2f} dB {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
