"""Trains the preview decoder: SD1.5 latents to pictures, as TAESD's decoder gives them.

    python -m lib_latent_upscale.training.preview_decoder \\
        --pictures DIR --codecs DIR --out lib_latent_upscale/assets/preview-sd15.safetensors

First, square crops of the pictures are encoded with TAESD's encoder and decoded again; then the
small network of ``lib_latent_upscale.preview`` learns to give the same picture for the same latent.
The target is TAESD's picture and not the original: the preview shows what a latent holds, and two
upscaled latents can be compared by it only if it adds nothing of its own. For the same reason a
part of the latents is not an encoder's but upscaled, blended or noisy, like those it will be shown.

TAESD: Ollin Boer Bohan, MIT, https://github.com/madebyollin/taesd.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from ..preview import PreviewDecoder
from .codecs import FACTOR, Decoder, Encoder, load_decoder, load_encoder

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
CROP = 192
"""Side of a crop in pixels, so that its latent is 24x24."""
CROPS_PER_PICTURE = 8
LARGEST = 60_000_000
"""Pixels of the largest picture that is read: a few vast ones would take gigabytes and minutes."""
HELD_OUT = 64
"""Pairs that are not trained on, for the PSNR in the log."""
ALTERED = 0.35
"""Share of latents that are blended with an upscaled smaller one, and then perhaps noisy."""


def find_pictures(root: Path) -> list[list[Path]]:
    """The picture files under ``root``, one sorted list for each folder directly in it."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink():
            groups[path.relative_to(root).parts[0] if path.parent != root else ""].append(path)
    return list(groups.values())


def read_crops(path: Path, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """Up to ``count`` CROP x CROP RGB crops of a picture, each from a scale of its own.

    Nothing comes of a file that cannot be read, is too small or vast, or shows next to nothing.
    """
    try:
        with Image.open(path) as file:
            if min(file.size) < CROP or file.width * file.height > LARGEST:
                return
            file.draft("RGB", (4 * CROP, 4 * CROP))  # JPEG: decode no larger than is used
            image = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return
    # Drawn figures are often cut out: put something plain behind them.
    backing = Image.new("RGBA", image.size, (*(rng.randrange(256) for _ in range(3)), 255))
    backing.alpha_composite(image)
    image = backing.convert("RGB")
    for _ in range(count):
        # Log-uniform between the whole short side and the picture's own pixels, but so that a crop
        # is never less than a quarter of the short side: it should hold something.
        zoom = CROP / min(image.size)
        scale = zoom * min(1 / zoom, 4.0) ** rng.random()
        size = [max(CROP, round(side * scale)) for side in image.size]
        scaled = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        for _ in range(4):
            left, top = rng.randint(0, size[0] - CROP), rng.randint(0, size[1] - CROP)
            crop = scaled.crop((left, top, left + CROP, top + CROP))
            if np.asarray(crop.convert("L")).std() > 10:
                yield crop
                break


def collect_crops(root: Path, count: int, rng: random.Random) -> list[Image.Image]:
    """About ``count`` crops from the pictures under ``root``, in random order.

    A folder's share is by the square root of its number of pictures: a package of 2,000 clip arts
    shall not outweigh one of 20 paintings a hundredfold.
    """
    groups = find_pictures(root)
    if not groups:
        raise SystemExit(f"no pictures ({', '.join(sorted(SUFFIXES))}) under {root}")
    total = sum(math.sqrt(len(group)) for group in groups)
    crops: list[Image.Image] = []
    for group in groups:
        wanted = round(count * math.sqrt(len(group)) / total)
        found = 0
        each = min(CROPS_PER_PICTURE, math.ceil(wanted / len(group)))
        for path in rng.sample(group, len(group)):
            if found >= wanted:
                break
            some = list(read_crops(path, each, rng))
            found += len(some)
            crops.extend(some)
    rng.shuffle(crops)
    return crops


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (N, 3, H, W) in 0..1."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def altered(latent: Tensor, crop: Image.Image, encoder: Encoder, rng: random.Random) -> Tensor:
    """``latent`` (4, h, w) made like an upscaler's: sharp here, soft there, sometimes noisy.

    Blended with the latent of a smaller version of the picture, upscaled by 1.25 to 3.
    """
    side = latent.shape[-1]
    small_side = FACTOR * max(1, round(side / rng.uniform(1.25, 3)))
    small = encoder(
        to_tensor([crop.resize((small_side, small_side), Image.Resampling.LANCZOS)]).to(latent)
    )
    mode = rng.choice(["bilinear", "bicubic"])
    upscaled = interpolate(small.float(), (side, side), mode=mode)[0]
    result = torch.lerp(latent, upscaled, rng.random())
    if rng.random() < 0.25:
        result = result + torch.randn_like(result) * rng.uniform(0.05, 0.3)
    return result


@torch.inference_mode()
def make_pairs(
    crops: Sequence[Image.Image],
    encoder: Encoder,
    decoder: Decoder,
    rng: random.Random,
    autocast: torch.autocast,
    device: torch.device,
) -> dict[str, Tensor]:
    """``latent`` float16 (N, 4, h, w) in UNet scale, ``picture`` uint8 (N, 3, 8h, 8w)."""
    latents: list[Tensor] = []
    pictures: list[Tensor] = []
    for start in range(0, len(crops), 4):
        some = crops[start : start + 4]
        with autocast:
            batch = encoder(to_tensor(some).to(device)).float()
            for index, crop in enumerate(some):
                if rng.random() < ALTERED:
                    batch[index] = altered(batch[index], crop, encoder, rng)
            batch = batch.half().float()  # the target is of exactly the latent that is kept
            picture = decoder(batch)
        latents.append(batch.half().cpu())
        pictures.append((picture.float() * 255).round().byte().cpu())
        if start % 200 == 0:
            print(f"pairs: {start + len(some)} of {len(crops)}", flush=True)
    return {
        "latent": torch.cat(latents).contiguous(),
        "picture": torch.cat(pictures).contiguous(),
    }


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over the batch of each picture's PSNR in dB; both (N, 3, H, W) in 0..1."""
    error = (output.float() - target.float()).square().mean((1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up for 200 steps, then a cosine down to a hundredth of the peak."""
    if step < 200:
        return peak * (step + 1) / 200
    progress = (step - 200) / max(1, steps - 200)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    pairs: dict[str, Tensor],
    steps: int,
    batch: int,
    peak: float,
    autocast: torch.autocast,
    device: torch.device,
) -> PreviewDecoder:
    """The trained network: the moving average of its weights, rounded to float16."""
    latents, pictures = pairs["latent"], pairs["picture"]
    if len(latents) < HELD_OUT + batch:
        raise SystemExit(f"only {len(latents)} usable crops: give more pictures or more --crops")
    held_latents = latents[:HELD_OUT].float().to(device)
    held_pictures = pictures[:HELD_OUT].to(device) / 255

    model = PreviewDecoder().to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.99), weight_decay=1e-4)
    order: list[int] = []
    started = time.monotonic()
    for step in range(steps):
        if len(order) < batch:
            order = (torch.randperm(len(latents) - HELD_OUT) + HELD_OUT).tolist()
        chosen, order = order[:batch], order[batch:]
        latent = latents[chosen].float().to(device, memory_format=torch.channels_last)
        picture = pictures[chosen].to(device) / 255
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        with autocast:
            output = model.unclamped(latent)
        error = output.float() - picture
        # L1 for edges and flat areas, MSE because results are compared by PSNR.
        loss = error.abs().mean() + 10 * error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        keep = min(0.998, (step + 1) / (step + 10))  # shorter memory while all changes fast
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters()):
                mean.lerp_(value, 1 - keep)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            with torch.inference_mode():
                quality = psnr(average(held_latents), held_pictures)
            print(
                f"step {step + 1} of {steps}: loss {loss.item():.4f}, held-out pairs "
                f"{quality:.2f} dB, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return average.half().float().cpu().eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ``arguments`` are those of the command line unless given."""
    parser = argparse.ArgumentParser(
        prog="python -m lib_latent_upscale.training.preview_decoder",
        description="Train the small preview decoder (SD1.5 latent to picture) that the demo uses.",
        epilog="With the defaults this takes about an hour on two CPU cores that others use too.",
    )
    add = parser.add_argument
    add("--pictures", type=Path, required=True, metavar="DIR",
        help="folder of pictures (.png .jpg .webp, also in subfolders), shorter side 192 px or "
        "more; a hundred are a start, a thousand or more are better; put pictures of different "
        "kinds into different subfolders, so that each kind gets its share")  # fmt: skip
    add("--codecs", type=Path, required=True, metavar="DIR",
        help="folder with taesd_encoder.safetensors and taesd_decoder.safetensors "
        "(from github.com/madebyollin/taesd)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE",
        help="the .safetensors file to write, float16, 0.8 MB")  # fmt: skip
    add("--pairs", type=Path, metavar="FILE",
        help="keep the training pairs in this .safetensors file, or take them from it if it is "
        "there (they are then made only once)")  # fmt: skip
    add("--crops", type=int, default=3300,
        help="number of training pairs to aim at; pictures too small, too plain or too few give "
        "fewer (default: %(default)s)")  # fmt: skip
    add("--steps", type=int, default=6500, help="training steps (default: %(default)s)")
    add("--batch", type=int, default=8, help="crops per step (default: %(default)s)")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of crops and training (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--precision", choices=["bf16", "fp32"], default="bf16",
        help="arithmetic while making pairs and training; fp32 is the faster one on a CPU without "
        "bfloat16 instructions (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)

    rng = random.Random(options.seed)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    if options.pairs and options.pairs.exists():
        pairs = load_file(options.pairs)
    else:
        encoder = load_encoder(options.codecs / "taesd_encoder.safetensors").to(device)
        decoder = load_decoder(options.codecs / "taesd_decoder.safetensors").to(device)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        crops = collect_crops(options.pictures, options.crops, rng)
        print(f"{len(crops)} crops", flush=True)
        pairs = make_pairs(crops, encoder, decoder, rng, autocast, device)
        if options.pairs:
            save_file(pairs, options.pairs)

    model = train(pairs, options.steps, options.batch, options.lr, autocast, device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    metadata = {
        "what": "preview decoder, latent in UNet scale to RGB picture in 0..1",
        "space": "sd15",
        "training": f"{len(pairs['latent'])} crops of {CROP} px, {options.steps} steps of "
        f"{options.batch}, peak learning rate {options.lr}, seed {options.seed}",
    }
    save_file(weights, options.out, metadata)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
