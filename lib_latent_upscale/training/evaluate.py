"""Measures latent upscalers on a folder of pictures, beside bicubic and the way through a picture.

Every picture is brought to a large and a small size (LANCZOS), both are encoded, the small latent
is brought to the large one's size in every way, and what comes out is decoded and compared with
the decoded large latent. Printed are the means over the pictures: L1 and MSE of the latents (UNet
scale), PSNR in dB, SSIM, HFEN (high-frequency error, 0 is right) and the sharpness ratio (Laplacian
energy: 1 is right, less is blur, more is artefacts) of the decoded pictures, the denoising
strength whose noise hides the latent's error (`strength`), in all and of the detail alone, and the
time for a picture. Use pictures that no model was trained on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..catalog import CATALOG, Entry, entries
from ..inference import LatentUpscaler, load
from ..spaces import SPACES, LatentSpace
from ..weights import files, hand_placed
from ..weights.errors import WeightsError
from . import sheets, whole
from .errors import TrainingError
from .evaluation import FIGURES, Result, bicubic, by_model, evaluate, through_the_picture
from .evaluation_pictures import find_pictures, read_pairs, sides
from .trained import load_upscaler
from .vae import open_vae

_DIGITS = dict.fromkeys(("ssim", "hfen", "l1", "mse", "seconds"), 3)
"""After the point, where not two."""


def table(result: Result) -> str:
    """The means as a table for the console."""
    rows = [("", *FIGURES.values())]
    for way, means in result.means().items():
        rows.append((way, *(f"{means[key]:.{_DIGITS.get(key, 2)}f}" for key in FIGURES)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    title = (
        f"x{result.factor:g}, {result.small_side} to {result.side} px, {len(result.names)} pictures"
    )
    return "\n".join([title, *lines])


def sheet(result: Result) -> Any:
    """The contact sheet of the pictures that were kept: small, every way, reference."""
    means = result.means()
    columns = ["small latent, decoded"]
    columns += [
        f"{way}\nmean {mean['psnr']:.2f} dB, sharpness {mean['sharpness']:.2f}"
        for way, mean in means.items()
    ]
    columns.append("large latent, decoded (reference)")
    rows = []
    for one in result.shown:
        ways = [one.ways[way] for way in means]
        small = sheets.as_image(one.small)
        enlarged = small.resize((result.side, result.side), resample=0)
        pictures = [enlarged, *(sheets.as_image(picture) for picture, _ in ways)]
        pictures.append(sheets.as_image(one.reference))
        captions = ["", *(f"{psnr:.2f} dB" for _, psnr in ways), ""]
        rows.append(sheets.Row(one.name, pictures, captions))
    return sheets.contact_sheet(columns, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--pictures", type=Path, required=True, metavar="DIR", help="a folder of pictures"
    )
    parser.add_argument("--space", choices=tuple(SPACES), required=True, help="the kind of latents")
    parser.add_argument(
        "--vae",
        type=Path,
        required=True,
        metavar="FILE",
        help="the VAE: a checkpoint's VAE, a diffusers folder, or TAESD's encoder",
    )
    parser.add_argument(
        "--decoder", type=Path, metavar="FILE", help="TAESD's decoder, where the VAE is TAESD"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        metavar="ID_OR_FILE",
        help="models to measure: ids of the catalogue whose files are here, files, or folders of "
        "runs; NAME=FILE to call one NAME (default: every model of this space that is here)",
    )
    parser.add_argument(
        "--factor", type=float, nargs="+", default=[2.0], metavar="F", help="factors (2)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=384,
        metavar="PX",
        help="side of the large picture; the nearest size that the factor allows is taken (384)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all the figures here")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="write a contact sheet here (.png, .jpg); with several factors one for each",
    )
    parser.add_argument(
        "--sheet-pictures", type=int, default=6, metavar="N", help="rows of the sheet (6)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be measured, and stop"
    )


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    try:
        return _run(options)
    except (WeightsError, OSError) as error:
        raise TrainingError(str(error)) from error


def _run(options: argparse.Namespace) -> int:
    space = SPACES[options.space]
    paths = find_pictures(options.pictures)[: options.limit]
    sizes = [sides(options.size, factor) for factor in options.factor]
    models = _models(options.models, space)
    _announce(options, space, paths, sizes, models)
    if options.dry_run:
        return 0
    loaded = [by_model(_loaded(file, space, options.device), name) for name, file in models]
    vae = open_vae(options.vae, space, options.decoder).to(options.device)
    ways = [bicubic(), *loaded, through_the_picture(vae)]
    results = []
    for factor in options.factor:
        pairs = tqdm(paths, desc=f"x{factor:g}", unit="picture", file=sys.stderr)
        result = evaluate(
            read_pairs(pairs, options.size, factor, tqdm.write),
            ways,
            vae,
            factor,
            options.sheet_pictures if options.sheet else 0,
        )
        results.append(result)
        print(table(result), flush=True)
        if options.sheet:
            path = _sheet_path(options.sheet, factor, len(options.factor) > 1)
            sheets.save(sheet(result), path)
            print(f"the sheet: {path}")
        if options.json:  # after every factor: what is measured is not lost
            _write_json(options, results)
    return 0


def _models(chosen: Sequence[str] | None, space: LatentSpace) -> list[tuple[str, str]]:
    """Names and ids or files of the models to measure."""
    if chosen is None:
        placed = hand_placed.scan(files.model_folders())
        here = [entry for entry in (*entries(space), *placed.entries) if entry.space is space]
        return [(entry.id, path) for entry in here if (path := _here(entry)) is not None]
    split = [one.rpartition("=") for one in chosen]
    named = [(name or Path(file).name, file) for name, _, file in split]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise TrainingError(f"two models are called {name}: say NAME=FILE for one of them")
    return named


def _here(entry: Entry) -> str | None:
    try:
        return str(files.find(entry))
    except WeightsError:
        return None


def _loaded(id_or_file: str, space: LatentSpace, device: str) -> LatentUpscaler:
    if id_or_file in CATALOG:
        upscaler = load(id_or_file, device)
    else:
        try:
            upscaler = load_upscaler(Path(id_or_file), device)
        except WeightsError:  # perhaps it does not say its space
            upscaler = load_upscaler(Path(id_or_file), device, space.id)
    if upscaler.space is not space:
        raise TrainingError(
            f"{id_or_file} is for {upscaler.space.label} latents; --space {space.id} was given"
        )
    return upscaler


def _announce(
    options: argparse.Namespace,
    space: LatentSpace,
    paths: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    models: Sequence[tuple[str, str]],
) -> None:
    print(f"{len(paths)} pictures of {options.pictures}, {space.label} by {options.vae}")
    for factor, (large, small) in zip(options.factor, sizes):
        print(f"x{factor:g}: {small} to {large} px")
    for name, file in models:
        print(f"model {name}" + (f": {file}" if name != file else ""))


def _sheet_path(path: Path, factor: float, several: bool) -> Path:
    return path.with_name(f"{path.stem}-x{factor:g}{path.suffix}") if several else path


def _write_json(options: argparse.Namespace, results: Sequence[Result]) -> None:
    content = {
        "format": "evaluation-1",
        "space": options.space,
        "vae": options.vae.name,
        "decoder": options.decoder.name if options.decoder else None,
        "device": _device_name(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "results": [result.as_json() for result in results],
    }
    whole.write_text(options.json, json.dumps(content, indent=1) + "\n")


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device} ({platform.machine()})"
