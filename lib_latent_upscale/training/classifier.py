"""Train a classifier of latents, whose features the contextual loss compares.

    python -m lib_latent_upscale.training classifier --data pairs/ --out features-sd15.safetensors

It learns to tell from a latent which folder its picture was in: photographs or drawings, birds or
buildings, whatever the pictures were sorted into before prepare. It need not become good at it.
Ten folders that differ in what they show are better than two, and a hundred pictures in each are a
start. Ctrl-C ends the training early and keeps what was learnt. Then, for a recipe with the
contextual loss: train ... --features features-sd15.safetensors
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from . import devices
from .errors import TrainingError
from .latent_classifier import LatentClassifier, save
from .optimizers import RateSchedule, set_rate
from .options import add_computing, add_shards, check_above_zero, check_out
from .shards import ShardReader
from .stopping import Stop
from .stream import PairStream
from .validation import hold_out

_WARM_UP = 0.1
"""Share of the steps."""
_SMOOTHING = 0.1
"""Of the labels: folders overlap."""
_HELD_BATCHES = 16
"""Batches of the pairs held out that a figure is of."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `classifier`."""
    add_shards(parser, of=" of pictures in folders")
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write")  # fmt: skip
    add("--steps", type=int, default=20000, help="how many (default: %(default)s)")
    add("--batch", type=int, default=32, help="latents in each step (default: %(default)s)")
    add("--crop", type=int, default=24,
        help="side in pixels of the small latents' crops; what is learnt from is the same part of "
        "the large ones (default: %(default)s)")  # fmt: skip
    add("--width", type=int, default=48,
        help="features of the first stage, a multiple of 8 (default: %(default)s: 2.0 million "
        "parameters)")  # fmt: skip
    add("--learning-rate", type=float, default=5e-4, help="its peak (default: %(default)s)")
    add("--held-out", type=int, default=256, metavar="PAIRS",
        help="pairs that are measured on instead, one in eight at most (default: %(default)s)"
        )  # fmt: skip
    add("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    add_computing(parser, "fp32")
    add("--dry-run", action="store_true", help="print what would be done; train and write nothing")


def run(options: argparse.Namespace) -> int:
    """Trains as the options say. Raises `TrainingError` for what the user can put right."""
    _check(options)
    options.device = str(devices.find(options.device))
    reader = ShardReader(options.data)
    if len(reader.labels) < 2:
        raise TrainingError(
            f"all pictures have the same label ({reader.labels[0]!r}): sort them into folders by "
            "what they show, and prepare them anew"
        )
    learnt, held = hold_out(reader, options.held_out)
    counts = Counter(reader.label(index) for index in range(len(reader)))
    print(f"{len(reader)} pairs of {reader.space.label} latents, {len(reader) - len(learnt)} of "
          f"them held out; {len(reader.labels)} labels:")  # fmt: skip
    for position, name in enumerate(reader.labels):
        print(f"    {name or '(no folder)'}: {counts[position]}")
    torch.manual_seed(options.seed)
    model = LatentClassifier(reader.space, reader.labels, options.width)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {options.steps} steps of {options.batch} on {options.device}")
    stream, measured = (
        PairStream(part, crop=options.crop, batch=options.batch, seed=options.seed)
        if part is not None
        else None
        for part in (learnt, held)
    )
    assert stream is not None
    if options.dry_run:
        print(f"would write {options.out}")
        return 0
    steps = train(model, stream, options)
    figures = {"steps": str(steps), "pairs": str(len(learnt))}
    if measured is not None:
        right, commonest = accuracy(model, measured, options.device)
        print(f"of the pairs held out, {right:.1%} are told right; naming the commonest label "
              f"always, {commonest:.1%} would be")  # fmt: skip
        figures |= {"accuracy": f"{right:.4f}", "commonest": f"{commonest:.4f}"}
    save(model, options.out, figures)
    print(f"written: {options.out}")
    return 0


def train(model: LatentClassifier, stream: PairStream, options: argparse.Namespace) -> int:
    """Trains `model` in place on the large latents of a stream; returns the steps done."""
    model.to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=0.01)
    autocast = torch.autocast(
        torch.device(options.device).type, torch.bfloat16, enabled=options.precision == "bf16"
    )
    schedule = RateSchedule("cosine", options.steps, max(1, round(_WARM_UP * options.steps)))
    batches = stream.batches()
    smooth = math.nan
    done = 0
    with Stop() as stop, tqdm(total=options.steps, desc="classifier", unit="step") as bar:
        while done < options.steps and not stop.wanted():
            batch = next(batches)[1].to(options.device)
            set_rate(optimizer, options.learning_rate * schedule.factor(done))
            with autocast:
                scores = model(batch.large)
            loss = F.cross_entropy(scores.float(), batch.labels, label_smoothing=_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            bar.update()
            if done % 50 == 1:
                now = _finite(float(loss.detach()))
                smooth = now if math.isnan(smooth) else 0.8 * smooth + 0.2 * now
                bar.set_postfix(loss=f"{smooth:.3f}")
    batches.close()  # type: ignore[attr-defined]
    model.eval()
    return done


@torch.no_grad()
def accuracy(
    model: LatentClassifier, stream: PairStream, device: torch.device | str
) -> tuple[float, float]:
    """Shares of some of a stream's latents: those told right, those with the commonest label."""
    batches = [stream.batch(step).to(device) for step in range(_HELD_BATCHES)]
    model.to(device).eval()
    right = torch.cat([model(batch.large).argmax(1) == batch.labels for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return float(right.float().mean()), float(labels.bincount().max() / len(labels))


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            "the loss is no number any more: choose a smaller --learning-rate, or --precision fp32"
        )
    return loss


def _check(options: argparse.Namespace) -> None:
    check_out(options.out)
    if options.out.exists():
        raise TrainingError(f"{options.out} is there already: name another file as --out")
    check_above_zero(options, "steps", "batch", "crop", "learning_rate")
    if options.width < 8 or options.width % 8:
        raise TrainingError(f"--width is a multiple of 8, not {options.width}")
