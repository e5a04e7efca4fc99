"""Makes of a run a file for `models/`, which the dropdown lists and `load` needs no more told of.

    python -m lib_latent_upscale.training export runs/first --label "My upscaler" \\
        --evaluation eval.json

The file holds the weights in float16, and says for which latents they are, their scale and factor,
the recipe, the data, and the figures that `evaluate` measured. It is loaded once, and compared with
the weights as they were trained, before it gets its name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import StateDictError, from_state_dict
from ..architectures.network import is_derived
from ..catalog import by_file_name
from ..inference import load
from ..spaces import SPACES, LatentSpace
from ..weights import files, writing
from ..weights.describing import describe, input_scale_of
from ..weights.errors import WeightsError
from . import trained
from .errors import TrainingError
from .evaluation import BICUBIC, THROUGH_THE_PICTURE

LARGEST_CHANGE = 0.02
"""By how much, of the result's own spread, float16 weights may change it."""
_NOT_KEPT = ("format", "figures", "network")
"""Of a run's metadata: the last has paths of the machine that it was trained on."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written, and how far its results are from those of the weights given.

    change: root mean square, over the standard deviation of the result.
    """

    path: Path
    size: int
    change: float


def write(
    weights: nn.Module | Mapping[str, Tensor],
    path: Path,
    *,
    space: LatentSpace,
    scale: str,
    factor: float | None,
    recipe: str,
    data: str,
    figures: Mapping[str, Any],
    half: bool = True,
    label: str = "",
    licence: str = "",
    source: str = "",
    more: Mapping[str, str] | None = None,
) -> Exported:
    """Writes weights as a file for `models/`, whole or not at all.

    weights: a network of `lib_latent_upscale.architectures`, or its state dict.
    scale: of the latents that it takes: "raw", "unet", or a factor such as "0.13025".
    factor: its own; None if it takes any size.
    recipe, data, label, licence, source: texts; the label is the name in the dropdown.
    figures: anything that JSON can hold.
    half: keep the numbers in float16.
    more: other metadata, such as hyperparameters that the weights do not show, in JSON.

    Raises `TrainingError` for weights that the library could not load from the file, or that
    float16 changes too much.
    """
    if path.suffix != ".safetensors":
        raise TrainingError(f"{path}: a file for models/ is a .safetensors file")
    if by_file_name(path.name) is not None:
        raise TrainingError(f"{path}: this is the name of a published file; choose another")
    given = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {
        key: value.detach().cpu().float() for key, value in given.items() if not is_derived(key)
    }
    texts = {
        "label": label,
        "licence": licence,
        "source": source,
        "recipe": recipe,
        "data": data,
        "figures": json.dumps(figures, sort_keys=True) if figures else "",
    }
    metadata = {
        **(more or {}),
        **{key: text for key, text in texts.items() if text},
        "space": space.id,
        "input": scale,
        "factor": "any" if factor is None else f"{factor:g}",
    }
    if factor is not None:
        metadata.setdefault("scale", f"{factor:g}")  # city96's weights do not show it
    kept = {key: value.half() for key, value in tensors.items()} if half else tensors
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own: an unfinished file in models/ would be offered in the dropdown.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        part = Path(folder) / path.name
        writing.write(part, kept, metadata)
        change = _change(part, tensors, half)
        os.replace(part, path)
    return Exported(path, path.stat().st_size, change)


@torch.no_grad()
def _change(path: Path, tensors: Mapping[str, Tensor], half: bool) -> float:
    """Loads a file as the extension does, and compares it with the float32 weights."""
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    try:
        upscaler = load(path)
        what = describe(path, shapes, trained.read(path).metadata)
        network = from_state_dict(tensors, **what.hyperparameters)
    except (WeightsError, StateDictError, TypeError) as error:
        reason = str(error).removeprefix(f"{path}: ").replace(str(path), "the file")
        raise TrainingError(
            f"the extension could not load these weights: {reason}"
            + ("; perhaps they do not fit float16: try --float32" if "infinite" in reason else "")
        ) from error
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, upscaler.space.channels, 24, 32, generator=generator)
    latent = upscaler.space.unet.to(upscaler.input_scale, latent)
    exact, kept = (one(latent, size=(48, 64)) for one in (network, upscaler.network))
    change = float((kept - exact).square().mean().sqrt() / exact.std().clamp_min(1e-12))
    if not change <= LARGEST_CHANGE:
        advice = "; keep them in float32 by --float32" if half else ""
        raise TrainingError(f"the file's result differs by {change:.1%} of its spread{advice}")
    return change


def figures_of(
    evaluation: Path, way: str | None, space: LatentSpace, usual: str = ""
) -> dict[str, Any]:
    """A model's figures in a JSON file of `evaluate`, by factor ("x2"), with others' beside them.

    way: what the evaluation calls the model; None for the one called `usual`, or the only one.

    Raises `TrainingError`.
    """
    try:
        content = json.loads(evaluation.read_text(encoding="utf-8"))
        if content["space"] != space.id:
            raise TrainingError(f"{evaluation} is of {content['space']} latents, not {space.id}")
        return {
            f"x{result['factor']:g}": _figures(evaluation, result, way, usual)
            for result in content["results"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{evaluation} is no file of evaluate's: {error!r}") from error


def _figures(
    evaluation: Path, result: Mapping[str, Any], way: str | None, usual: str
) -> dict[str, Any]:
    beside = (BICUBIC, THROUGH_THE_PICTURE)
    models = [name for name in result["ways"] if name not in beside]
    if way is None:
        way = usual if usual in models else models[0] if len(models) == 1 else None
    if way not in models:
        raise TrainingError(
            f"{evaluation} has figures of {', '.join(models)}: say which by --figures-of NAME"
        )
    mean = {key: round(value, 4) for key, value in result["ways"][way]["mean"].items()}
    del mean["seconds"]  # of that machine
    return {
        "pictures": len(result["pictures"]),
        "large_pixels": result["large_pixels"],
        **mean,
        "psnr_of_others": {
            name: round(result["ways"][name]["mean"]["psnr"], 2)
            for name in beside
            if name in result["ways"]
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN",
        help="a run's folder (its best weights), or a file of its weights/ or checkpoints/"
    )  # fmt: skip
    add("--out", type=Path, metavar="FILE",
        help="the .safetensors file (default: in the folder of models, by the run's name)"
    )  # fmt: skip
    add("--label", default="", help="the name in the dropdown: Latent (LABEL) (the file's name)")
    add("--evaluation", type=Path, metavar="JSON", help="figures, by evaluate --json")
    add(
        "--figures-of", metavar="NAME", help="what the evaluation calls this model (the run's name)"
    )
    add("--data", default="", metavar="TEXT", help="what it was trained on (the run's settings)")
    add("--licence", default="", metavar="TEXT", help="of the weights")
    add("--source", default="", metavar="TEXT", help="whose it is, an address perhaps")
    add("--float32", action="store_true", help="keep the weights in float32, twice as large")
    add("--force", action="store_true", help="replace the file if it is there")
    add("--dry-run", action="store_true", help="say what would be written, and stop")


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    content = trained.read(options.run)
    spec, told = content.spec, content.metadata
    if spec is not None and not spec.is_own:
        raise TrainingError(
            f"{content.path} is a {spec.architecture} that the extension has no network for: it "
            "can be trained and evaluated, not exported"
        )
    space = SPACES.get(told.get("space", ""))
    if space is None or input_scale_of(told.get("input", "raw"), space) is None:
        raise TrainingError(f"{content.path} does not say which latents it is for")
    name = _name(options.run, content.path)
    out = options.out or files.model_folders()[0] / f"{name}-{space.id}.safetensors"
    if out.exists() and not options.force:
        raise TrainingError(f"{out} is there already: choose another --out, or --force")
    figures = (
        figures_of(options.evaluation, options.figures_of, space, name)
        if options.evaluation
        else {}
    )
    factor = told.get("factor")
    about = {
        "space": space,
        "scale": told.get("input", "raw"),
        "factor": float(factor) if factor not in (None, "any") else None,
        "recipe": told.get("recipe", ""),
        "data": options.data or told.get("data", "") or _data(options.run),
        "figures": figures,
        "label": options.label,
        "licence": options.licence,
        "source": options.source,
    }
    print(f"{content.path}: {sum(one.numel() for one in content.tensors.values()):,} weights")
    for key, value in about.items():
        print(f"  {key}: {getattr(value, 'label', value)}")
    if options.dry_run:
        print(f"would be written to {out}")
        return 0
    more = {key: value for key, value in told.items() if key not in _NOT_KEPT}
    try:
        done = write(content.tensors, out, half=not options.float32, more=more, **about)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    print(
        f"{done.path}: {done.size / 1e6:.2f} MB; its results differ from the float32 weights' by "
        f"{done.change:.2%} of their spread"
    )
    return 0


def _name(run: Path, path: Path) -> str:
    """The run's name, whichever of its files was given."""
    run = run.resolve()
    if run.is_dir():
        return run.name
    return run.parent.parent.name if run.parent.name in ("weights", "checkpoints") else path.stem


def _data(run: Path) -> str:
    """The folders of pairs that a run was trained on, by its settings."""
    folder = run if run.is_dir() else run.parent.parent
    try:
        said = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return ", ".join(Path(one).name for one in said["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
