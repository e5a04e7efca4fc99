"""What a file of weights is: which architecture, for which latents, by all that tells of it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..architectures import NETWORKS, StateDictError, configure, identify
from ..architectures.network import Shapes
from ..catalog import CATALOG, Entry, by_file_name
from ..spaces import RAW, SPACES, LatentScale, LatentSpace
from .errors import WeightsError
from .reading import space_of_name


@dataclass(frozen=True)
class Description:
    """What `describe` found."""

    entry: Entry | None
    """The catalogue's, for a file under a published name or converted from a published one."""
    architecture: str
    space: LatentSpace
    input_scale: LatentScale
    hyperparameters: Mapping[str, Any]
    """Those that were told, for `architectures.from_state_dict`."""
    factor: float | None
    label: str | None
    """The name that its metadata give it, without the dropdown's "Latent (...)"."""


def describe(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    space: str | None = None,
) -> Description:
    """What the file at `path` is, by the shapes of its tensors and its metadata.

    space: the id of its latent space where the caller knows it.

    Raises `WeightsError` for weights of no architecture known here, and for those whose latent
    space or other hyperparameters nothing tells.
    """
    entry = by_file_name(path.name) or CATALOG.get(metadata.get("id", ""))
    try:
        hyperparameters = {
            **(entry.hyperparameters if entry is not None else {}),
            **_told(shapes, metadata),
        }
        network_class, arguments = configure(shapes, **hyperparameters)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{path}: {str(error)[:300]}") from error
    latents, input_scale = _latents(path, metadata, entry, space)
    if arguments["channels"] != latents.channels:
        raise WeightsError(
            f"{path} takes latents of {arguments['channels']} channels; those of "
            f"{latents.label} have {latents.channels}"
        )
    architecture = network_class.architecture
    factor = arguments.get("scale", getattr(network_class, "scale", None))
    _check_told(path, metadata, architecture, factor)
    label = metadata.get("label")
    return Description(entry, architecture, latents, input_scale, hyperparameters, factor, label)


def input_scale_of(told: str, space: LatentSpace) -> LatentScale | None:
    """The scale of "raw", "unet", or a factor of raw latents near a VAE's; None for other texts."""
    if told in ("raw", "unet"):
        return RAW if told == "raw" else space.unet
    try:
        factor = float(told)
    except ValueError:
        return None
    return LatentScale(factor) if 1e-3 <= factor <= 1e3 else None


def _told(shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The hyperparameters that the metadata tell, of those that the weights do not show."""
    network = identify(shapes)
    shown = network.hyperparameters(Shapes(shapes))
    names = [name for name in inspect.signature(network).parameters if name not in shown]
    return {name: _parsed(name, metadata[name]) for name in names if name in metadata}


def _parsed(name: str, text: str) -> Any:
    """A metadata entry: a factor, or the sides of windows."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if name == "scale" and type(value) in (int, float) and 1 < value <= 8:
        return float(value)
    sides = value if isinstance(value, list) and len(value) == 2 else [0]
    if name != "scale" and all(type(side) is int and 0 < side <= 64 for side in sides):
        return tuple(sides)
    raise StateDictError(f"the metadata say that {name!r} is {text[:50]!r}, which cannot be")


def _check_told(
    path: Path, metadata: Mapping[str, str], architecture: str, factor: float | None
) -> None:
    """Raises `WeightsError` for metadata that tell of another network than the weights are."""
    told = metadata.get("architecture", architecture)
    known = {network.architecture for network in NETWORKS}
    if told != architecture and told in known:
        raise WeightsError(
            f"{path}: its metadata say {told}, but its weights are of {architecture}"
        )
    shown = f"{factor:g}" if factor else "any"
    if not _same_factor(metadata.get("factor", shown), factor):
        raise WeightsError(
            f"{path}: its metadata say that its factor is {metadata['factor'][:50]!r}, but its "
            f"weights are of a network for {shown}"
        )


def _same_factor(told: str, factor: float | None) -> bool:
    if factor is None:
        return told == "any"
    try:
        return abs(float(told) - factor) < 1e-6
    except ValueError:
        return False


def _latents(
    path: Path, metadata: Mapping[str, str], entry: Entry | None, told: str | None
) -> tuple[LatentSpace, LatentScale]:
    """The latent space of a file and the scale that its network wants."""
    if entry is not None and told in (None, entry.space.id):
        return entry.space, entry.input_scale
    space_id = told or metadata.get("space") or space_of_name(path.name)
    space = SPACES.get(space_id or "")
    if space is None:
        raise WeightsError(
            f"{path}: nothing tells which latent space it is for ({', '.join(SPACES)}). Write "
            f'{{"space": "sdxl"}} into a file {path.stem}.json beside it, or name it '
            f"{path.stem}-sdxl{path.suffix}"
            + (f"; {space_id[:50]!r} is no latent space known here" if space_id else "")
        )
    wanted = metadata.get("input", "raw")
    scale = input_scale_of(wanted, space)
    if scale is None:
        raise WeightsError(
            f'{path}: its "input" is "raw", "unet" or a scaling factor such as 0.13025, not '
            f"{wanted[:50]!r}"
        )
    return space, scale
