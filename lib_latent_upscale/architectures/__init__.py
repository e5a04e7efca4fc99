"""The networks of the latent upscalers, built from their state dicts.

Adding an architecture is one file with a `Network` subclass and one entry in `NETWORKS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .city96 import City96
from .compact import Compact
from .craft import CRAFT
from .dat import DAT
from .drct import DRCT
from .halfway import Halfway
from .network import Network, Shapes, StateDictError, as_float32, is_derived
from .swinfir import SwinFIR
from .ttl import Ttl

__all__ = ["NETWORKS", "Network", "StateDictError", "configure", "from_state_dict", "identify"]

NETWORKS: tuple[type[Network], ...] = (DAT, CRAFT, SwinFIR, DRCT, City96, Ttl, Compact, Halfway)


def identify(keys: Mapping[str, Any]) -> type[Network]:
    """The class whose state dicts have these keys.

    Raises `StateDictError` for keys of no architecture here.
    """
    for network in NETWORKS:
        if all(key in keys for key in network.signature):
            return network
    known = ", ".join(network.architecture for network in NETWORKS)
    first = next(iter(keys), None)
    raise StateDictError(
        f"these are no weights of a latent upscaler known here ({known}); "
        + (f"the first key is {first!r}" if first is not None else "the state dict is empty")
    )


def from_state_dict(state_dict: Mapping[str, Tensor], **hyperparameters: Any) -> Network:
    """The network of a published state dict, in eval mode and float32, on the weights' device.

    Architecture and hyperparameters are found from the keys and shapes; `hyperparameters` tell
    or override (`scale=1.25` for city96's networks, whose weights do not show it). Entries that
    the architecture determines (indices, masks, counters) are ignored and may be missing.
    The network may share memory with the tensors given.

    Raises `StateDictError`, naming the key, for a state dict of no known architecture and for
    unknown, missing, misshapen or non-finite entries; `TypeError` for a hyperparameter that the
    architecture does not have or that must be given.
    """
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise StateDictError(f"{key!r} is a {type(value).__name__}; a tensor expected")
    weights = {key: value for key, value in state_dict.items() if not is_derived(key)}
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    network_class, arguments = configure(shapes, **hyperparameters)
    try:
        with torch.device("meta"):  # shapes only: no time is lost on initial weights
            network = network_class(**arguments)
    except (ArithmeticError, RuntimeError, ValueError) as error:  # of torch's own layers
        name = network_class.architecture
        raise StateDictError(f"no {name} network has weights of these shapes: {error}") from error
    _check_weights(weights, network.to_state_dict())
    loaded = {key: as_float32(value, key) for key, value in weights.items()}
    for key in network.state_dict().keys() - loaded.keys():  # batch counters, unused in eval
        loaded[key] = torch.zeros((), dtype=torch.int64)
    network.load_state_dict(loaded, assign=True)
    return network.eval()


def configure(
    shapes: Mapping[str, tuple[int, ...]], **hyperparameters: Any
) -> tuple[type[Network], dict[str, Any]]:
    """The class and the constructor's arguments for a state dict with tensors of these shapes.

    What its network is, without building it: raises as `from_state_dict` does, as far as shapes
    can tell.
    """
    weights = {key: shape for key, shape in shapes.items() if not is_derived(key)}
    network_class = identify(weights)
    arguments = {**network_class.hyperparameters(Shapes(weights)), **hyperparameters}
    _check_arguments(network_class, arguments)
    return network_class, arguments


def _check_arguments(network_class: type[Network], arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(network_class).parameters
    name = network_class.architecture
    unknown = sorted(arguments.keys() - parameters.keys())
    if unknown:
        raise TypeError(
            f"{name} has no hyperparameter {unknown[0]!r}; it has {', '.join(parameters)}"
        )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise TypeError(f"the weights of {name} do not show {key!r}: tell it, as {key}=...")


def _check_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise StateDictError(f"unknown key {unknown[0][:200]!r}{_more(unknown)}")
    missing = [key for key in wanted if key not in given]
    if missing:
        raise StateDictError(f"the state dict lacks the key {missing[0]!r}{_more(missing)}")
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            raise StateDictError(
                f"{key!r} has the shape {tuple(given[key].shape)}; {tuple(value.shape)} expected"
            )


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""
