"""Trains a preview decoder: latents to pictures, as TAESD's decoder gives them.

    python -m lib_latent_upscale.training preview --data pairs/ \\
        --decoder taesdxl_decoder.safetensors \\
        --out lib_latent_upscale/assets/preview-sdxl.safetensors

The small network of ``lib_latent_upscale.preview`` learns to give TAESD's picture for the same
latent: squares of the pairs' large latents. The target is TAESD's picture and not the original: the
preview shows what a latent holds, and two upscaled latents can be compared by it only if it adds
nothing of its own. For the same reason a part of the latents is not an encoder's but blended with
the small one, interpolated, or noisy, like those it will be shown.

TAESD: Ollin Boer Bohan, MIT, https://github.com/madebyollin/taesd.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..preview import PreviewDecoder
from ..spaces import RAW
from ..weights import writing
from . import devices, metrics, trained, whole
from .ema import Ema
from .errors import TrainingError
from .optimizers import RateSchedule, set_rate
from .options import add_computing, add_shards, check_above_zero, check_out
from .shards import ShardReader
from .vae import Vae, open_vae, to_images

SIDE = 24
"""Of the squares, in latent pixels: 192 of the picture's."""
HELD_OUT = 64
"""Squares that are not trained on, for the PSNR in the log."""
ALTERED = 0.35
"""Share of latents that are blended with the interpolated small one, and then perhaps noisy."""
DECODED = 8
"""Latents decoded at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `preview`."""
    add_shards(parser)
    add = parser.add_argument
    add("--decoder", required=True, type=Path, metavar="FILE", help="TAESD's decoder of the space")
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write, float16, 0.8 MB")  # fmt: skip
    add("--begin", type=Path, metavar="FILE",
        help="a preview decoder, of another space perhaps, to begin from: of its weights those "
        "that fit are taken")  # fmt: skip
    add("--squares", type=int, default=2600, help="how many are decoded, once (%(default)s)")
    add("--steps", type=int, default=6500, help="(%(default)s)")
    add("--batch", type=int, default=8, help="squares of a step (%(default)s)")
    add("--learning-rate", type=float, default=1.5e-3, help="its peak (%(default)s)")
    add("--seed", type=int, default=1, help="of the squares and the training (%(default)s)")
    add_computing(parser)


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    check_out(options.out)
    check_above_zero(options, "steps", "batch", "learning_rate")
    if options.squares < HELD_OUT + options.batch:
        raise TrainingError(f"--squares {options.squares}: {HELD_OUT} alone are held out")
    reader = ShardReader(options.data)
    device = devices.find(options.device)
    torch.manual_seed(options.seed)
    vae = open_vae(options.decoder, reader.space, device=device, precision=options.precision)
    model = begin(reader.space.channels, options.begin).to(device)
    latents, pictures = squares(reader, vae, options.squares, device)
    model = train(model, latents, pictures, options)
    about = {
        "what": "preview decoder, latent in UNet scale to RGB picture in 0..1",
        "space": reader.space.id,
        "training": f"{options.squares} squares of {SIDE}x{SIDE}, {options.steps} steps of "
        f"{options.batch}, peak learning rate {options.learning_rate}, seed {options.seed}",
    }
    with whole.replacing(options.out) as part:
        writing.write(part, {key: one.half() for key, one in model.state_dict().items()}, about)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


def begin(channels: int, file: Path | None) -> PreviewDecoder:
    """A network with random weights, but those of the file that fit."""
    model = PreviewDecoder(channels)
    if file is not None:
        given, own = trained.read(file).tensors, model.state_dict()
        fitting = {k: v.float() for k, v in given.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict(fitting, strict=False)
    return model


@torch.no_grad()
def squares(
    reader: ShardReader, vae: Vae, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Latents float16 (count, C, SIDE, SIDE) in UNet scale, and their pictures, uint8 (count, 3,
    8 * SIDE, 8 * SIDE)."""
    usable = [i for i in range(len(reader)) if min(reader.sizes(i).large) >= SIDE]
    if not usable:
        raise TrainingError(f"no large latent of {SIDE}x{SIDE} or more is among the pairs")
    latents, pictures = [], []
    for start in tqdm(range(0, count, DECODED), unit=f" x {DECODED} squares"):
        chosen = torch.randint(len(usable), (min(DECODED, count - start),)).tolist()
        some = torch.stack([_square(*reader.pair(usable[index])) for index in chosen])
        some = RAW.to(reader.space.unet, some).half()  # the target is of exactly what is kept
        raw = reader.space.unet.to(RAW, some.float().to(device))
        latents.append(some)
        pictures.append((to_images(vae.decode(raw)) * 255).round().byte().cpu())
    return torch.cat(latents), torch.cat(pictures)


def _square(small: Tensor, large: Tensor) -> Tensor:
    """A raw square (C, SIDE, SIDE) of a pair, now and then made like an upscaler's."""
    small, large = small.float(), large.float()
    if torch.rand(()) < ALTERED:
        mode = "bilinear" if torch.rand(()) < 0.5 else "bicubic"
        soft = F.interpolate(small[None], size=large.shape[-2:], mode=mode)[0]
        deviation = large.std()
        large = torch.lerp(large, soft, torch.rand(()))
        if torch.rand(()) < 0.25:
            noise = torch.empty(()).uniform_(0.05, 0.3) * deviation
            large = large + torch.randn_like(large) * noise
    top, left = (int(torch.randint(side - SIDE + 1, ())) for side in large.shape[-2:])
    return large[:, top : top + SIDE, left : left + SIDE]


def train(
    model: PreviewDecoder, latents: Tensor, pictures: Tensor, options: argparse.Namespace
) -> PreviewDecoder:
    """``model``, trained: the moving average of its weights, rounded to float16."""
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
    held_latents = latents[:HELD_OUT].float().to(device)
    held_pictures = pictures[:HELD_OUT].to(device) / 255

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    average = Ema(model, 0.998)
    peak = options.learning_rate
    schedule = RateSchedule("cosine", options.steps, warm_up=200, floor=0.01)
    optimizer = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.99), weight_decay=1e-4)
    order: list[int] = []
    started = time.monotonic()
    for step in range(options.steps):
        if len(order) < options.batch:
            order = (torch.randperm(len(latents) - HELD_OUT) + HELD_OUT).tolist()
        chosen, order = order[: options.batch], order[options.batch :]
        latent = latents[chosen].float().to(device, memory_format=torch.channels_last)
        picture = pictures[chosen].to(device) / 255
        set_rate(optimizer, peak * schedule.factor(step))
        with autocast:
            output = model.unclamped(latent)
        error = output.float() - picture
        # L1 for edges and flat areas, MSE because results are compared by PSNR.
        loss = error.abs().mean() + 10 * error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        if (step + 1) % 250 == 0 or step + 1 == options.steps:
            with torch.inference_mode():
                found = average.network(held_latents)
            quality = sum(
                metrics.psnr(one[None], other[None]) for one, other in zip(found, held_pictures)
            )
            print(
                f"step {step + 1} of {options.steps}: loss {loss.item():.4f}, held-out squares "
                f"{quality / len(found):.2f} dB, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.load_state_dict(average.network.state_dict())
    return model.half().float().cpu().eval()
