"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .errors import TrainingError


def add_shards(parser: argparse.ArgumentParser, of: str = "") -> None:
    """`data`, what to learn from."""
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="SHARDS", type=Path,
        help=f"shard files or folders of them, made by prepare{of}",
    )  # fmt: skip


def check_out(path: Path) -> None:
    """Raises `TrainingError` for an `--out` that no .safetensors file is to be called, or can be
    written to: before hours of work, not after."""
    if path.suffix != ".safetensors":
        raise TrainingError(f"--out {path}: a name that ends in .safetensors is wanted")
    if path.is_dir():
        raise TrainingError(f"--out {path} is a folder: name a file in it")
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TrainingError(f"--out {path}: nothing can be written in {folder}")


def check_above_zero(options: argparse.Namespace, *names: str) -> None:
    """Raises `TrainingError` for the first of these options that is not above zero."""
    for name in names:
        value = getattr(options, name)
        if not value > 0:
            raise TrainingError(f"--{name.replace('_', '-')} is to be above 0, not {value}")


def add_computing(parser: argparse.ArgumentParser, precision: str = "bf16") -> None:
    """`device`, for `devices.find`, and `precision`, "bf16" or "fp32"."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (a GPU if there is one)"
    )
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default=precision,
        help="bf16 is the faster one on GPUs and CPUs that have it (%(default)s)",
    )  # fmt: skip
