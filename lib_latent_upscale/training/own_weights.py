"""A run's weights as files: of the network's average, with all that the library must be told."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..architectures import identify
from ..architectures.network import Shapes, StateDictError
from ..spaces import LatentSpace
from ..weights import writing
from . import networks, whole
from .networks import NetworkSpec
from .recipes import Recipe


def metadata_of(recipe: Recipe, network: nn.Module, space: LatentSpace) -> dict[str, str]:
    """What the library reads of a file (see `weights.describing`), and where it comes from."""
    spec = recipe.network
    told = {
        "architecture": spec.architecture,
        "space": space.id,
        "input": recipe.scale,
        "recipe": recipe.name,
        "network": json.dumps(dataclasses.asdict(spec)),
    }
    # Its own factor, not the pairs': a network for any size may be trained at one.
    if (factor := getattr(network, "scale", None)) is not None:
        told["factor"] = f"{factor:g}"
    if spec.is_own:
        told |= {
            name: json.dumps(value) for name, value in _not_shown(spec, network, space).items()
        }
    return told


def write(
    path: Path, network: nn.Module, metadata: Mapping[str, str], figures: Mapping[str, Any]
) -> None:
    """Writes the weights in float32, whole or not at all."""
    weights = network.to_state_dict()  # type: ignore[operator]
    tensors = {key: value.detach().float().cpu() for key, value in weights.items()}
    with whole.replacing(path) as part:
        writing.write(part, tensors, {**metadata, "figures": json.dumps(figures)})


def _not_shown(spec: NetworkSpec, network: nn.Module, space: LatentSpace) -> dict[str, Any]:
    """The constructor's arguments that the weights' shapes do not show."""
    weights = network.to_state_dict()  # type: ignore[operator]
    try:
        shown = identify(weights).hyperparameters(
            Shapes({key: tuple(value.shape) for key, value in weights.items()})
        )
    except StateDictError:
        return {}
    factor = getattr(network, "scale", None)
    all_of_them = networks.resolved(spec, space.channels, float(factor or 2))
    names = inspect.signature(networks.OWN[spec.architecture]).parameters
    return {name: all_of_them[name] for name in names if name not in shown and name in all_of_them}
