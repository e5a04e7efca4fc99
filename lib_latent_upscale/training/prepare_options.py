"""The command line of prepare, and what it says."""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..spaces import SPACES
from ..weights.files import sha256
from . import pictures
from .errors import TrainingError
from .fingerprints import BITS
from .pair_jobs import Cutting, parse_factors
from .pair_plan import Choice

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of prepare."""
    _add_data_arguments(parser)
    _add_pair_arguments(parser)
    _add_work_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is read and written")
    group.add_argument("inputs", nargs="*", type=Path, metavar="PICTURES",
        help="folders of pictures, webdataset tars (plain .tar), folders of them")  # fmt: skip
    group.add_argument("--out", type=Path, required=True, metavar="DIR",
        help="the folder for the shards")  # fmt: skip
    group.add_argument("--vae", type=Path, metavar="FILE",
        help="the VAE of the checkpoints that the model is for: a .safetensors, .pt or .ckpt file "
        "of it or of a whole checkpoint, a folder in diffusers' layout (both need diffusers), or "
        "TAESD's encoder")  # fmt: skip
    group.add_argument("--decoder", type=Path, metavar="FILE",
        help="TAESD's decoder, if --vae is its encoder: for the contact sheet")  # fmt: skip
    group.add_argument("--space", choices=SPACES, help="whose latents the VAE makes; SD2 is sd15")
    group.add_argument("--exclude", type=Path, nargs="+", default=[], metavar="DIR",
        help="pictures that models are measured on: neither they nor near copies of them, also "
        "mirrored ones, get in")  # fmt: skip
    group.add_argument("--limit", type=int, default=0, metavar="N",
        help="use N pictures at the most, chosen by --seed; all of them are looked at")  # fmt: skip
    group.add_argument("--per-label", type=int, default=0, metavar="N",
        help="use N pictures of each label at the most")  # fmt: skip
    group.add_argument("--label-depth", type=int, default=1, metavar="N",
        help="a picture's label is the first N folders of its path (default: 1); in a tar the "
        "sample's .cls goes before")  # fmt: skip
    group.add_argument("--backing", default="random", metavar="COLOUR",
        help="behind transparent pictures: #808080, white, ..., or a random colour for each "
        "(default)")  # fmt: skip
    group.add_argument("--near", type=int, default=4, metavar="BITS",
        help=f"two pictures whose hashes of {BITS} bits differ in so many at the most are near "
        "copies, and the larger one is kept (default: 4; -1 keeps all)")  # fmt: skip
    group.add_argument("--near-excluded", type=int, default=12, metavar="BITS",
        help="the same for copies of excluded pictures: more, as to leave out a few pictures too "
        "many does no harm (default: 12)")  # fmt: skip


def _add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the pairs")
    group.add_argument("--factor", nargs="+", default=["2"], metavar="F",
        help="how much larger the large latent is (default: 2). Several, such as 1.25 1.5 2, make "
        "a pair each of every crop; a range such as 1..2.1 makes one, of a random sixteenth in "
        "it")  # fmt: skip
    group.add_argument("--crop", type=int, default=0, metavar="N",
        help="the small latents' side in latent pixels: 32 for crops of 512 pixels at factor 2. "
        "0, the default, encodes pictures whole, which costs least, as the margin is cut off "
        "once; training takes crops of them")  # fmt: skip
    group.add_argument("--crops", type=int, default=4, metavar="N",
        help="crops of a picture at each scale at the most, at random places "
        "(default: 4)")  # fmt: skip
    group.add_argument("--margin", type=int, default=4, metavar="N",
        help="latent pixels that are encoded around a crop and cut off again, because an encoder "
        "sees nothing beyond a border. TAESD's latents differ there by 20 to 45%% of their "
        "standard deviation in the outermost pixel, 2 to 8%% in the fifth, nothing from the 20th "
        "on (default: 4)")  # fmt: skip
    group.add_argument("--fit", type=int, default=1024, metavar="PIXELS",
        help="bring pictures with a longer short side down to it (default: 1024; 0: "
        "none)")  # fmt: skip
    group.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S",
        help="use each picture at several sizes, such as 1 0.5 (default: 1)")  # fmt: skip
    group.add_argument("--flip", action="store_true",
        help="encode everything mirrored too: twice as many pairs. (Latents cannot be mirrored: "
        "an encoder gives a mirrored picture another latent)")  # fmt: skip
    group.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")


def _add_work_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the work")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    group.add_argument("--batch", type=int, default=4, metavar="N",
        help="pictures of one size encoded at once (default: 4)")  # fmt: skip
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
        help="bf16 is faster where the hardware has it (default: fp32)")  # fmt: skip
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    group.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N",
        help="pictures read at once (default: %(default)s)")  # fmt: skip
    group.add_argument("--shard-size", type=int, default=512, metavar="N",
        help="pairs of a shard, about (default: 512)")  # fmt: skip
    group.add_argument("--sheet", type=int, default=12, metavar="N",
        help="pairs on the contact sheet, pairs.png (default: 12)")  # fmt: skip
    group.add_argument("--dry-run", action="store_true",
        help="look at the pictures, say what would be made, and write nothing")  # fmt: skip
    group.add_argument("--check", action="store_true",
        help="make nothing: check the statistics of the shards in --out, and with --vae and "
        "--decoder draw their contact sheet")  # fmt: skip


def validate(options: argparse.Namespace) -> None:
    for name in ("inputs", "vae", "space"):
        if not getattr(options, name):
            what = "PICTURES" if name == "inputs" else f"--{name}"
            raise TrainingError(f"{what} is missing; --help tells what it is")
    least = {"batch": 1, "workers": 1, "shard_size": 1, "crops": 1, "margin": 0, "crop": 0,
             "fit": 0, "limit": 0, "per_label": 0, "label_depth": 0, "near": -1,
             "near_excluded": -1, "sheet": 0}  # fmt: skip
    for name, low in least.items():
        if getattr(options, name) < low:
            raise TrainingError(f"--{name.replace('_', '-')} is {low} or more")
    if max(options.near, options.near_excluded) >= BITS:
        raise TrainingError(f"--near and --near-excluded are less than {BITS} bits")
    if not all(0 < scale <= 1 for scale in options.scales):
        raise TrainingError("--scales are above 0 and up to 1: pictures are not enlarged")
    pictures.backing_colour(options.backing, random.Random(0))
    cutting_of(options)


def cutting_of(options: argparse.Namespace) -> Cutting:
    return Cutting(
        factors=tuple(parse_factors(factor) for factor in options.factor),
        crop=options.crop,
        crops=options.crops,
        margin=options.margin,
        fit=options.fit,
        scales=tuple(options.scales),
        flip=options.flip,
        seed=options.seed,
    )


def choice_of(options: argparse.Namespace) -> Choice:
    return Choice(
        near=options.near,
        near_excluded=options.near_excluded,
        limit=options.limit,
        per_label=options.per_label,
        shard=options.shard_size,
        seed=options.seed,
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that the shards depend on, but for the pictures themselves."""
    cutting = {
        **{key: value for key, value in asdict(cutting_of(options)).items() if key != "factors"},
        "factors": options.factor,
    }
    return {
        "inputs": [str(path.resolve()) for path in options.inputs],
        "exclude": [str(path.resolve()) for path in options.exclude],
        "label_depth": options.label_depth,
        "backing": options.backing,
        "space": options.space,
        "vae": options.vae.name,
        "vae_sha256": sha256(options.vae) if options.vae.is_file() else "",
        "precision": options.precision,
        "batch": options.batch,
        "dtype": options.dtype,
        **cutting,
        **asdict(choice_of(options)),
    }
