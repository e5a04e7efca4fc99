"""What a run of the trainer gave: its weights, and the upscaler that they make.

A run's folder has `weights/best.safetensors` and `weights/latest.safetensors` (see `own_weights`),
whose metadata say what the network is, and `checkpoints/step-N.pt`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..architectures import StateDictError, from_state_dict
from ..architectures.halfway import Halfway
from ..architectures.network import is_derived
from ..inference import LatentUpscaler, load
from ..spaces import SPACES, LatentSpace
from ..weights import reading, writing
from ..weights.describing import describe, input_scale_of
from ..weights.errors import WeightsError
from . import networks, whole
from .errors import TrainingError

_KEPT = ("best.safetensors", "latest.safetensors")
_NOT_PASSED_ON = ("format", "figures")
"""The writer's own, and what was measured of the weights before."""


@dataclass(frozen=True)
class Trained:
    """Weights, in float32, and what is said of them."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def spec(self) -> networks.NetworkSpec | None:
        """The network that was trained; None where the file is of no run of this trainer."""
        try:
            return networks.NetworkSpec.from_json(json.loads(self.metadata["network"]))
        except (KeyError, ValueError, TypeError):
            return None


def weights_file(path: Path) -> Path:
    """The file of weights that is meant by a run's folder, its best; a file is itself.

    Raises `TrainingError` for what is neither.
    """
    if path.is_dir():
        found = [path / "weights" / name for name in _KEPT if (path / "weights" / name).is_file()]
        if not found:
            raise TrainingError(f"{path} is no run's folder, or has no weights/{_KEPT[0]} yet")
        return found[0]
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, and no run's folder")
    return path


def read(path: Path) -> Trained:
    """The weights of a run (its folder), of a file of weights, or of a run's checkpoint.

    A checkpoint's are those of the average (EMA). Raises `TrainingError`.
    """
    path = weights_file(path)
    if path.suffix == ".pt" and path.parent.name == "checkpoints":
        return _of_checkpoint(path)
    try:
        content = reading.read(path)
    except WeightsError as error:
        raise TrainingError(str(error)) from error
    return Trained(path, content.tensors, content.metadata)


def halfway_of(path: Path, space: LatentSpace) -> tuple[Trained, Halfway]:
    """The weights of a run or a file, and their network, for latents of that space in UNet scale.

    Raises `TrainingError` for any other network.
    """
    given = read(path)
    about = {"space": space.id, "input": "unet", **given.metadata}
    try:
        what = describe(given.path, {k: tuple(v.shape) for k, v in given.tensors.items()}, about)
        network = from_state_dict(given.tensors, **what.hyperparameters)
    except (WeightsError, StateDictError) as error:
        reason = str(error).removeprefix(f"{given.path}: ")
        raise TrainingError(f"{given.path}: {reason}") from error
    fits = (what.space, what.input_scale) == (space, space.unet)
    if not (isinstance(network, Halfway) and fits):
        raise TrainingError(
            f"{given.path} is no halfway network for {space.label} latents in UNet scale"
        )
    return given, network


def write(path: Path, tensors: Mapping[str, Tensor], of: Trained) -> None:
    """Writes weights that were made of others, whole or not at all.

    What is said of those is said of these, but for figures.
    """
    about = {key: text for key, text in of.metadata.items() if key not in _NOT_PASSED_ON}
    with whole.replacing(path) as part:
        writing.write(part, dict(tensors), about)


def load_upscaler(path: Path, device: str = "cpu", space: str | None = None) -> LatentUpscaler:
    """What was trained, as an upscaler: networks that only spandrel has, too.

    Raises `TrainingError`, and `WeightsError` as `lib_latent_upscale.load` does.
    """
    path = weights_file(path)
    try:
        return load(path, device, space=space)
    except WeightsError:
        trained = read(path)
        spec = trained.spec
        if spec is None or spec.is_own:
            raise
        return _of_spandrel(trained, spec, device)


def _of_checkpoint(path: Path) -> Trained:
    beside = weights_file(path.parent.parent)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        average, step = state["ema"], int(state["step"])
    except Exception as error:  # whatever torch makes of a file that is cut off
        raise TrainingError(f"{path} is no checkpoint of a run: {str(error)[:200]}") from error
    metadata = dict(reading.read_header(beside).metadata)
    metadata.pop("figures", None)  # of other weights
    tensors = {key: value for key, value in average.items() if not is_derived(key)}
    return Trained(path, tensors, {**metadata, "steps": str(step)})


def _of_spandrel(trained: Trained, spec: networks.NetworkSpec, device: str) -> LatentUpscaler:
    space = SPACES[trained.metadata["space"]]
    factor = float(trained.metadata.get("factor", 2))
    network = networks.build(replace(spec.untrained, dropout=0.0), space.channels, factor)
    inner = getattr(network, "network", network)
    assert isinstance(inner, nn.Module)
    inner.load_state_dict(dict(trained.tensors), strict=False)
    network.eval().requires_grad_(False).to(device)
    scale = input_scale_of(trained.metadata.get("input", "raw"), space)
    if scale is None:
        raise TrainingError(f"{trained.path}: its metadata say no scale of latents")
    return LatentUpscaler(network, space, scale, trained.path.name)  # type: ignore[arg-type]
