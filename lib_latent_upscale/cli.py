"""The command line: python -m lib_latent_upscale list | fetch | verify | upscale | demo."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import latent_files, model_commands
from .catalog import CATALOG
from .inference import LatentUpscaler, load
from .spaces import LatentSpace
from .weights import files
from .weights.errors import MissingWeightsError, WeightsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status. Errors of the user's are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (WeightsError, latent_files.LatentFileError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_latent_upscale",
        description="Upscales latents of Stable Diffusion models with trained networks.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    model_commands.add_to(commands)

    upscale = commands.add_parser(
        "upscale",
        help="upscale a latent",
        description="Upscales a latent (N, C, H, W): .safetensors and .npy in UNet scale, "
        "ComfyUI's .latent in its own. The ending of OUT tells what is written.",
    )
    upscale.add_argument("input", metavar="IN", type=Path)
    upscale.add_argument("output", metavar="OUT", type=Path)
    upscale.add_argument(
        "--model",
        default="bundled-sd15",
        metavar="ID",
        help="an id of the list, fetched if it is not here, or a file (bundled-sd15)",
    )
    upscale.add_argument("--space", choices=("sd15", "sdxl", "sd3", "flux"), help=argparse.SUPPRESS)
    target = upscale.add_mutually_exclusive_group()
    target.add_argument("--scale", type=float, metavar="F", help="the factor (2)")
    target.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="the target, in latent pixels (1/8 of the picture's)",
    )
    upscale.add_argument("--device", default="cpu", help="cpu, cuda, mps, ... (cpu)")
    upscale.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="show the result, too, as a small decoder sees it: a picture to look at, not to keep",
    )
    upscale.set_defaults(run=_upscale)

    demo = commands.add_parser("demo", help="upscale a real latent and show it beside bicubic")
    demo.add_argument("--out", type=Path, default=Path("out/demo.png"), metavar="FILE")
    demo.set_defaults(run=_demo)
    return parser


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: HEIGHTxWIDTH, as in 96x128")
    return int(match[1]), int(match[2])


def _upscale(options: argparse.Namespace) -> None:
    latent_files.check_suffix(options.output)
    if options.picture is not None:
        _check_picture(options.picture)
    upscaler = load(_file_of(options.model), options.device, space=options.space)
    latent = latent_files.read(options.input, upscaler.space)
    size = options.size or _scaled(latent.shape[-2:], options.scale, upscaler)
    started = time.perf_counter()
    result = upscaler(latent, size)
    seconds = time.perf_counter() - started
    latent_files.write(options.output, result, upscaler.space)
    print(
        f"{options.output}: {tuple(latent.shape)} to {tuple(result.shape)} with {upscaler.name} "
        f"in {seconds:.2f} s"
    )
    if options.picture is not None:
        _show(result, upscaler.space, options.picture)


_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"--picture {path}: a name that ends in {', '.join(_PICTURES)} expected")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ValueError("--picture needs Pillow: pip install pillow") from error


def _show(latent: Tensor, space: LatentSpace, path: Path) -> None:
    """Writes the pictures that the space's preview decoder makes of latents, side by side."""
    from PIL import Image

    from .preview import load_preview_decoder

    decoder = load_preview_decoder(space)
    with torch.no_grad():
        strip = torch.cat([decoder(one)[0] for one in latent.float().cpu().split(1)], dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((strip.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    print(path)


def _file_of(id_or_path: str) -> Path:
    """The model's file, fetched if it is one of the catalogue and not here."""
    entry = CATALOG.get(id_or_path)
    if entry is None:
        return Path(id_or_path)
    try:
        return files.find(entry)
    except MissingWeightsError:
        if entry.file.url is None:
            raise
        return model_commands.fetch_with_bar(model_commands.fetcher(), entry)


def _scaled(size: Sequence[int], scale: float | None, upscaler: LatentUpscaler) -> tuple[int, int]:
    factor = scale if scale is not None else upscaler.network.scale or 2.0
    if not 0 < factor <= 64:
        raise ValueError(f"--scale {factor:g}: a factor above 0 and up to 64 expected")
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _demo(options: argparse.Namespace) -> None:
    from . import demo

    demo.run(options.out)
