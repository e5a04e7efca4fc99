"""Average the weights of several runs that went on from the same weights.

    python -m lib_latent_upscale.training average runs/one runs/other --shares 0.4 0.6 \\
        --out both.safetensors

Where a step's gradient is mostly noise, what two runs learnt is the same, and what their last steps
did to them is not: the mean is often better than either (Wortsman et al., Model soups, 2022). Runs
of different beginnings have nothing in common. Measure what you get, by `evaluate`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import trained
from .errors import TrainingError
from .options import check_out

_ALIKE = ("space", "input")
"""What their metadata must say alike: which latents they take, in which scale."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `average`."""
    add = parser.add_argument
    add("weights", nargs="+", type=Path, metavar="RUN",
        help="runs' folders or files of weights; what is said of them is the first's")  # fmt: skip
    add("--shares", nargs="+", type=float, metavar="N",
        help="how much each counts; all as much if not given")  # fmt: skip
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    check_out(options.out)
    shares = options.shares or [1.0] * len(options.weights)
    given = [trained.read(path) for path in options.weights]
    trained.write(options.out, average(given, shares), given[0])
    print(f"{options.out}: the average of {len(given)} networks' weights")
    return 0


def average(given: Sequence[trained.Trained], shares: Sequence[float]) -> dict[str, Tensor]:
    """The mean of networks' weights, float32, each as much as its part of the shares' sum.

    Raises `TrainingError` for fewer than two, for other shares than one above 0 for each, and for
    networks that are not built alike, or for other latents.
    """
    if len(given) < 2:
        raise TrainingError("an average is of two networks' weights, or more")
    if len(shares) != len(given) or not all(math.isfinite(one) and one > 0 for one in shares):
        raise TrainingError(f"--shares has a number above 0 for each of the {len(given)} networks")
    first = given[0]
    for other in given[1:]:
        if unlike := _unlike(first, other):
            raise TrainingError(
                f"{other.path} is not the like of {first.path}: they differ in {unlike}"
            )
    parts = torch.tensor(shares, dtype=torch.float64) / math.fsum(shares)
    means = {}
    for key, value in first.tensors.items():
        stacked = torch.stack([one.tensors[key].double() for one in given], dim=-1)
        means[key] = (stacked @ parts).float() if value.is_floating_point() else value
    return means


def _unlike(one: trained.Trained, other: trained.Trained) -> str:
    """What of their metadata, or which tensor's size, is not the same in both; "" for nothing."""
    built, others = (
        {key: side.metadata.get(key) for key in _ALIKE}
        | {key: tuple(value.shape) for key, value in side.tensors.items()}
        for side in (one, other)
    )
    names = sorted(built.keys() | others.keys())
    return next((name for name in names if built.get(name) != others.get(name)), "")
