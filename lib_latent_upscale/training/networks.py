"""The networks that can be trained: the project's own, and those that spandrel builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..architectures import NETWORKS, Network
from ..architectures.network import is_derived
from ..weights import reading
from ..weights.errors import WeightsError
from . import foreign, initial, variants
from .errors import TrainingError

OWN = {network.architecture: network for network in NETWORKS}


@dataclass(frozen=True)
class NetworkSpec:
    """A network to train.

    architecture: one of `OWN`, or the name of one of spandrel's (HAT, OmniSR, DITN, GRL, ...).
    parameters: of its constructor; those not given are the published ones.
    weights: a file to begin from (fine-tuning) in place of random weights.
    dropout, fourier_ends, mbconv, soft_relu: see `variants`.
    """

    architecture: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    dropout: float = 0.0
    fourier_ends: bool = False
    mbconv: bool = False
    soft_relu: float = 0.0

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> NetworkSpec:
        """The spec that `dataclasses.asdict` made this of. Raises `TypeError` for another."""
        return cls(**{**said, "parameters": tuples(said["parameters"])})

    @property
    def untrained(self) -> NetworkSpec:
        """The same network without the file that it begins from."""
        return replace(self, weights="")

    @property
    def is_own(self) -> bool:
        """Whether the trained weights can be loaded by the library."""
        return self.architecture in OWN and not (self.fourier_ends or self.mbconv)


def tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that JSON has had: lists as the tuples that they were."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in said.items()}


def build(spec: NetworkSpec, channels: int, factor: float = 2) -> nn.Module:
    """The network in training mode: `forward(x, size)`, `scale`, `output_size`, `to_state_dict`.

    factor: the network's own; ignored by one that takes any size.
    Draws from torch's random numbers. Raises `TrainingError` for what cannot be built.
    """
    if spec.architecture in OWN:
        network: nn.Module = _own(spec, channels, factor)
    else:
        network = foreign.build(spec.architecture, spec.parameters, channels, _whole(factor))
    if spec.fourier_ends:
        variants.use_fourier_ends(network)
    if spec.mbconv:
        variants.use_mbconv(network)
    if spec.dropout:
        variants.use_dropout(network, spec.dropout)
    if spec.soft_relu:
        variants.use_soft_relus(network, spec.soft_relu)
    if spec.weights:
        _load(network, Path(spec.weights))
    return network.train()


def resolved(spec: NetworkSpec, channels: int, factor: float = 2) -> dict[str, Any]:
    """All parameters of the network's constructor, the published ones included."""
    network_class = OWN.get(spec.architecture)
    if network_class is None:
        return dict(spec.parameters)
    known = inspect.signature(network_class).parameters
    unknown = sorted(set(spec.parameters) - set(known))
    if unknown:
        raise TrainingError(
            f"{spec.architecture} has no parameter {unknown[0]!r}; it has {', '.join(known)}"
        )
    told = {"channels": channels, **spec.parameters}
    if "scale" in known and "scale" not in told:
        told["scale"] = factor if spec.architecture == "city96" else _whole(factor)
    published = _PUBLISHED.get(spec.architecture, dict)(told)
    return {**published, **told}


def _own(spec: NetworkSpec, channels: int, factor: float) -> Network:
    parameters = resolved(spec, channels, factor)
    try:
        network = OWN[spec.architecture](**parameters)
        initial.initialise(network)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, IndexError) as error:
        raise TrainingError(
            f"{spec.architecture} cannot be built with {parameters}: {error}"
        ) from error
    return network


def _whole(factor: float) -> int:
    if factor != int(factor):
        raise TrainingError(
            f"the data's factor is {factor:g}; of the networks here city96 takes a broken one, "
            "ttl and halfway any"
        )
    return int(factor)


def _load(network: nn.Module, path: Path) -> None:
    """Weights to begin from, of exactly this network."""
    try:
        tensors = reading.read(path).tensors
    except WeightsError as error:
        raise TrainingError(str(error)) from error
    given = {key: value for key, value in tensors.items() if not is_derived(key)}
    target = network.network if isinstance(network, foreign.Foreign) else network
    wanted = {key: value for key, value in target.state_dict().items() if not is_derived(key)}
    for key in sorted(wanted.keys() | given.keys()):
        shapes = [tuple(d[key].shape) if key in d else "nothing" for d in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise TrainingError(
                f"{path} does not fit the network: {key!r} is {shapes[0]} in it and {shapes[1]} in "
                "the network" + ("" if key in given else _WHAT_TO_DO.get(key, ""))
            )
    target.load_state_dict({key: value.float() for key, value in given.items()}, strict=False)


_WHAT_TO_DO = {
    "across.weight": ". Its network resamples linearly: --set network.neighbours=0 does as well, "
    "and the command halfway, with --begin and --steps 0 0, makes weights of it that can learn more"
}
"""By the first key that weights of an earlier form of a network lack."""


# The published parameters, given those that were told: what follows from a width follows from the
# one told. See shared/docs/models.md, "Configurations".


def _dat(told: Mapping[str, Any]) -> dict[str, Any]:
    dim = told.get("dim", 270)
    return {
        "dim": dim, "depths": (6,) * 6, "heads": 6, "hidden": 2 * dim, "tail_dim": 64,
        "split_size": (8, 16),
    }  # fmt: skip


def _craft(told: Mapping[str, Any]) -> dict[str, Any]:
    dim = told.get("dim", 180)
    return {
        "dim": dim, "depths": (6,) * 7, "heads": 6, "hidden": 2 * dim,
        "fusion_hidden": int(dim * 2.66), "split_size": (4, 16),
    }  # fmt: skip


def _swinfir(told: Mapping[str, Any]) -> dict[str, Any]:
    dim = told.get("dim", 96)
    return {
        "dim": dim, "depths": (6,) * 4, "heads": 6, "window": 8, "hidden": 4 * dim, "tail_dim": 64
    }  # fmt: skip


def _drct(told: Mapping[str, Any]) -> dict[str, Any]:
    dim, growth = told.get("dim", 180), told.get("growth", 32)
    ratios = (2, 2, 2, 1, 1)
    return {
        "dim": dim, "groups": 12, "growth": growth, "heads": (6, 4, 2, 6, 4), "window": 16,
        "hidden": tuple(ratio * (dim + index * growth) for index, ratio in enumerate(ratios)),
        "tail_dim": 64, "spectral": False,
    }  # fmt: skip


def _city96(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": 64, "depth": 16}


def _ttl(told: Mapping[str, Any]) -> dict[str, Any]:
    half = tuple(index in (1, 10) for index in range(12))
    return {"dim": 128, "embedding_dim": 32, "in_blocks": half, "out_blocks": half}


def _compact(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": 64, "depth": 10}


def _halfway(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": 64, "coarse": 6, "fine": 3, "folding": 3, "neighbours": 4}


_PUBLISHED: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "dat": _dat,
    "craft": _craft,
    "swinfir": _swinfir,
    "drct": _drct,
    "city96": _city96,
    "ttl": _ttl,
    "compact": _compact,
    "halfway": _halfway,
}
