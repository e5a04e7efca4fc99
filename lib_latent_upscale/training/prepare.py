"""Make pairs of raw latents, of every picture at two sizes, as shards that training reads.

Pictures come from folders and from tars such as webdataset's. What cannot be read, is too small,
shows nothing or is a near copy of another picture is left out and listed in skipped.tsv. A run that
is stopped, even killed, goes on when the same command is given again, and ends with just the files
that it would have ended with.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..spaces import SPACES, LatentSpace
from . import devices, inspecting, pair_plan, pictures, whole
from .errors import TrainingError
from .pair_jobs import jobs
from .pair_making import Maker
from .pair_plan import Plan
from .prepare_options import (
    DTYPES,
    add_arguments,
    choice_of,
    cutting_of,
    settings_of,
    validate,
)
from .shards import INDEX, ShardReader
from .vae import Vae, open_vae

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> int:
    """Runs prepare. Raises `TrainingError`."""
    if options.check:
        return _check(options)
    validate(options)
    space = SPACES[options.space]
    device = devices.find(options.device)
    vae = open_vae(options.vae, space, options.decoder, device=device, precision=options.precision)
    if not vae.encodes:
        raise TrainingError(f"{options.vae} is a decoder; --vae is to be the encoder's file")
    settings = settings_of(options)
    if options.dry_run:
        plan = pair_plan.read(options.out, settings) or _plan(options, None)
        _announce(plan, options, space)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(options.out / "prepare.lock"), timeout=0):
            found = pair_plan.read(options.out, settings)
            if found is None:
                found = _plan(options, options.out / pair_plan.SCAN)
                pair_plan.write(options.out, settings, found)
            _announce(found, options, space)
            _make(found, vae, options, device)
            _finish(vae, options, settings)
    except Timeout:
        raise TrainingError(f"another prepare is at work in {options.out}") from None
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.")
        return 130
    return 0


def _plan(options: argparse.Namespace, kept: Path | None) -> Plan:
    damaged: list[tuple[str, str]] = []
    files = list(
        pictures.find(options.inputs, options.label_depth, lambda *what: damaged.append(what))
    )
    if not files:
        raise TrainingError(
            f"no pictures ({', '.join(sorted(pictures.SUFFIXES))}) and no .tar in "
            f"{', '.join(map(str, options.inputs))}"
        )
    looked = pair_plan.look_at_all(files, kept, options.workers, "looking")
    kept_out = list(pictures.find(options.exclude))
    if options.exclude and not kept_out:
        raise TrainingError(f"no pictures in {', '.join(map(str, options.exclude))} to exclude")
    excluded = pair_plan.look_at_all(kept_out, None, options.workers, "excluded")
    plan = pair_plan.choose(looked, excluded, choice_of(options), cutting_of(options))
    if not plan.pairs:
        reasons = _reasons([*damaged, *plan.skipped])
        raise TrainingError(f"none of the {len(looked)} pictures can be used: {reasons}")
    return Plan(plan.shards, [*damaged, *plan.skipped], plan.pairs)


def _reasons(skipped: Sequence[tuple[str, str]]) -> str:
    """How many pictures are left out for which kind of reason."""
    kinds = Counter(why.split(":")[0] for _, why in skipped)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"


def _announce(plan: Plan, options: argparse.Namespace, space: LatentSpace) -> None:
    cutting = cutting_of(options)
    encoded = numbers = 0
    for one in (one for shard in plan.shards for one in shard):
        for job in jobs(one.name, (one.width, one.height), cutting):
            encoded += math.prod(job.large) + math.prod(job.small)
            numbers += int(math.prod(job.kept) * (1 + job.factor**2))
    size = numbers * space.channels * DTYPES[options.dtype].itemsize
    used = sum(len(shard) for shard in plan.shards)
    if plan.skipped:
        print(f"left out: {_reasons(plan.skipped)} (each of them: {pair_plan.SKIPPED})")
    print(
        f"{used} pictures, {plan.pairs} pairs of {space.label} latents at factor "
        f"{', '.join(options.factor)}, {len(plan.shards)} shards in {options.out}, "
        f"{size / 1e6:.1f} MB, {encoded / 1e6:.0f} million pixels to encode"
    )


def _shard(folder: Path, number: int) -> Path:
    return folder / f"pairs-{number:05}.safetensors"


def _make(plan: Plan, vae: Vae, options: argparse.Namespace, device: torch.device) -> None:
    bar = tqdm(desc="encoding", total=plan.pairs, unit="pair", smoothing=0.05)
    problems = options.out / pair_plan.SKIPPED

    def report(name: str, why: str) -> None:
        with problems.open("a", encoding="utf-8") as file:
            file.write(f"{name}\t{' '.join(why.split())}\n")

    def progress(pairs: int, pixels: int) -> None:
        bar.update(pairs)

    maker = Maker(
        vae, cutting_of(options), options.batch, DTYPES[options.dtype], options.backing, device,
        report, progress,
    )  # fmt: skip
    warned = False
    with bar, ThreadPoolExecutor(options.workers) as pool:
        for number, shard in enumerate(plan.shards):
            path = _shard(options.out, number)
            if path.is_file():
                bar.update(
                    sum(
                        len(jobs(one.name, (one.width, one.height), maker.cutting)) for one in shard
                    )
                )
                continue
            made = maker.make(path, shard, pool, options.workers)
            if made and not warned:  # early: the rest may take days
                for warning in inspecting.check(ShardReader(path)):
                    tqdm.write(f"WARNING: {warning}")
                warned = True


def _finish(vae: Vae, options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    reader = ShardReader(options.out)
    labels = Counter(reader.labels[reader.label(index)] for index in range(len(reader)))
    factors = Counter(str(reader.sizes(index).factor) for index in range(len(reader)))
    index = {
        "pairs": len(reader),
        "space": reader.space.id,
        "vae": vae.name,
        "factors": dict(sorted(factors.items())),
        "labels": dict(sorted(labels.items())),
        "statistics": asdict(inspecting.statistics(reader)),
        "settings": dict(settings),
    }
    whole.write_text(options.out / INDEX, json.dumps(index, indent=2) + "\n")
    print(f"{len(reader)} pairs are in {options.out}")
    _look(reader, vae, options)


def _check(options: argparse.Namespace) -> int:
    reader = ShardReader(options.out)
    vae = None
    if options.vae is not None:
        vae = open_vae(
            options.vae, reader.space, options.decoder, device=devices.find(options.device)
        )
    return 1 if _look(reader, vae, options) else 0


def _look(reader: ShardReader, vae: Vae | None, options: argparse.Namespace) -> list[str]:
    """Draws the contact sheet, where there is a decoder, and prints what the statistics say."""
    if vae is not None and vae.decodes and options.sheet:
        path = options.out / "pairs.png"
        inspecting.draw(reader, vae, path, options.sheet, options.seed)
        print(f"look at {path}: both pictures of a row are to show the same, sharp and in colour")
    elif options.sheet:
        print("no contact sheet: it needs --vae and, with TAESD's encoder, --decoder")
    warnings = inspecting.check(reader)
    for warning in warnings:
        print(f"WARNING: {warning}")
    return warnings
