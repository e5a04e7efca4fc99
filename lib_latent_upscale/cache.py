"""Loaded upscalers, kept between jobs: on the CPU as they are, on other devices as copies.

A model is loaded once, in float32, on the CPU; a job on another device or in another precision
works with a copy of it there. So nothing is ever moved back, giving memory back is dropping a
copy, and the exact weights are always at hand.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from .architectures.layers import windows
from .architectures.layers.constants import caches_of
from .inference import LatentUpscaler, load
from .weights.errors import WeightsError

_CPU = torch.device("cpu")
_CPU_BYTES = 1 << 30  # of models kept, and of copies; the largest published model has 192 MB
_SMALL = 64 << 20  # of a copy that may stay whatever the memory

_Place = tuple[torch.device, torch.dtype]


class Policy(Enum):
    """What becomes of a copy on a device after its use."""

    KEEP = "keep"
    """It stays while there is room: see `UpscalerCache`."""
    OFFLOAD = "offload"
    """It goes; the model stays on the CPU."""
    UNLOAD = "unload"
    """Copy and model go."""


class Residence(Protocol):
    """The host's say in what is on a device. Networks stay its guests until `leave`."""

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        """Makes room for the network and for `working` bytes that it will compute with, and
        brings it to the device, if it is not there."""

    def leave(self, network: nn.Module) -> None:
        """The network is used no more."""

    def room(self, device: torch.device) -> tuple[int, int] | None:
        """Bytes free and in all, or None if nobody knows."""


class PlainResidence:
    """Where no host has a say."""

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        network.to(device)

    def leave(self, network: nn.Module) -> None:
        pass

    def room(self, device: torch.device) -> tuple[int, int] | None:
        return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


@dataclass
class Model:
    """A loaded model: see `UpscalerCache.get`."""

    path: Path
    upscaler: LatentUpscaler
    """On the CPU, in float32."""
    copies: dict[_Place, LatentUpscaler] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held by whoever uses a copy or drops one."""


@dataclass(frozen=True)
class Statistics:
    """hits: uses that found their model, or their copy, there. loads: from disk. copies: made.
    bytes: of weights and the constants that come of them, by device.
    models: the paths of those that are loaded."""

    hits: int
    loads: int
    copies: int
    bytes: dict[str, int]
    models: tuple[Path, ...]


class UpscalerCache:
    """Loads each file once, and keeps models and their copies on devices.

    policy: what becomes of a copy after its use. Under `Policy.KEEP` the copies on a device stay
        within `budget` bytes, the least recently used leaving first; without a budget, small ones
        stay always and larger ones while more than half of the device's memory is free. Copies
        on the CPU may take 1 GB, whatever the budget.
    residence: the host's say in what is on a device.

    A file that changed on disk is loaded anew. Safe under threads: two that ask for one model
    wait for one load, and use it one after the other. A load that fails leaves nothing behind.
    """

    def __init__(
        self,
        policy: Policy = Policy.KEEP,
        budget: int | None = None,
        residence: Residence | None = None,
    ) -> None:
        self.policy, self.budget = policy, budget
        self.residence: Residence = residence or PlainResidence()
        self._lock = threading.Lock()
        self._loading: dict[object, threading.Lock] = {}
        self._models: OrderedDict[object, Model] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def get(self, path: Path) -> Model:
        """The model of that file, loaded if it is not; raises what `load` raises.

        Who holds it can go on using it when the cache has forgotten it or the file is gone.
        """
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        key = (path, _state(path))
        model = self._found(key)
        if model is not None:
            return model
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            try:
                # Found: by a thread that was here before.
                model = self._found(key) or self._load(key, path)
            finally:
                with self._lock:
                    self._loading.pop(key, None)
        self._forget_old()
        return model

    def _load(self, key: object, path: Path) -> Model:
        model = Model(path, load(path))
        with self._lock:
            self._counts["loads"] += 1
            self._models[key] = model
        return model

    def _found(self, key: object) -> Model | None:
        with self._lock:
            model = self._models.get(key)
            if model is not None:
                self._counts["hits"] += 1
                self._models.move_to_end(key)
            return model

    @contextmanager
    def use(
        self,
        model: Model,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        *,
        working: int = 0,
    ) -> Iterator[LatentUpscaler]:
        """The model's upscaler on that device in that precision, for the `with` block.

        working: bytes that it will need there beside its weights; the host is told.
        """
        place = (torch.device(device), dtype)
        if place == (_CPU, torch.float32):
            with model.lock:
                yield model.upscaler
            return
        with model.lock:
            copy = model.copies.get(place)
            if copy is None:
                self._counts["copies"] += 1
                copy = model.copies[place] = model.upscaler.copied(dtype)
            else:
                self._counts["hits"] += 1
            try:
                self.residence.enter(copy.network, place[0], working)
                yield copy
            finally:
                del copy
                self._after_use(model, place)

    def release(self, path: Path) -> None:
        """Forgets the model of that file, which may be mapped into memory until then."""
        self._forget(lambda model: model.path == path)

    def clear(self) -> None:
        """Forgets all models."""
        self._forget(lambda model: True)

    def leave_device(self, device: torch.device) -> None:
        """Drops all copies on the device that are not in use."""
        for model in self._all():
            for place in [place for place in list(model.copies) if place[0] == device]:
                self._drop(model, place)

    def statistics(self) -> Statistics:
        """What is there and how it came there."""
        loaded, held = self.loaded(), Counter[str]()
        for places in loaded.values():
            held.update(places)
        with self._lock:
            counts = Counter(self._counts)
        return Statistics(
            counts["hits"], counts["loads"], counts["copies"], dict(held), tuple(loaded)
        )

    def loaded(self) -> dict[Path, dict[str, int]]:
        """The files whose models are loaded, each with the bytes of its weights by device."""
        found: dict[Path, Counter[str]] = {}
        for model in self._all():
            places = found.setdefault(model.path, Counter())
            places["cpu"] += size(model.upscaler.network)
            for copy in list(model.copies.values()):
                places[str(copy.device)] += size(copy.network)
        return {path: dict(places) for path, places in found.items()}

    def _all(self) -> list[Model]:
        """The models, the least recently used first."""
        with self._lock:
            return list(self._models.values())

    # Under `Policy.KEEP`: who has to go.

    def _after_use(self, model: Model, place: _Place) -> None:
        with self._lock:
            keys = [key for key, one in self._models.items() if one is model]
            for key in keys:
                self._models.move_to_end(key)
        if self.policy is not Policy.KEEP or not keys:
            self._drop(model, place)
            if self.policy is Policy.UNLOAD:
                self.release(model.path)
            return
        # A dictionary keeps the order in which keys came: the latest used is the last.
        model.copies[place] = model.copies.pop(place)
        self._trim(place[0])

    def _trim(self, device: torch.device) -> None:
        """Drops the least recently used copies on a device until the rest may stay."""
        found = [
            (model, place, size(copy.network))
            for model in self._all()
            for place, copy in list(model.copies.items())
            if place[0] == device
        ]
        held = sum(bytes_ for _, _, bytes_ in found)
        for model, place, bytes_ in found:
            if self._may_stay(held, device):
                return
            if self._drop(model, place):
                held -= bytes_

    def _may_stay(self, held: int, device: torch.device) -> bool:
        if device == _CPU:  # nobody knows of room there
            return held <= _CPU_BYTES
        if self.budget is not None:
            return held <= self.budget
        if held <= _SMALL:
            return True
        room = self.residence.room(device)
        return room is not None and room[0] > room[1] // 2

    def _drop(self, model: Model, place: _Place) -> bool:
        """Drops a copy, unless another thread uses it."""
        if not model.lock.acquire(blocking=False):
            return False
        try:
            copy = model.copies.pop(place, None)
            if copy is not None:
                self.residence.leave(copy.network)
                if not self._has_copies(place[0]):
                    windows.forget()  # which are there, too, and of no network
            return copy is not None
        finally:
            model.lock.release()

    def _has_copies(self, device: torch.device) -> bool:
        return any(place[0] == device for model in self._all() for place in list(model.copies))

    def _forget_old(self) -> None:
        """Forgets the least recently used models beyond what the CPU keeps; never the last."""
        models = self._all()
        sizes = [size(model.upscaler.network) for model in models]
        surplus = sum(sizes) - _CPU_BYTES
        for model, one in list(zip(models, sizes))[:-1]:
            if surplus <= 0:
                return
            self._forget(functools.partial(operator.is_, model))
            surplus -= one

    def _forget(self, which: Callable[[Model], bool]) -> None:
        with self._lock:
            keys = [key for key, model in self._models.items() if which(model)]
            models = [self._models.pop(key) for key in keys]
        for model in models:
            for place in list(model.copies):
                self._drop(model, place)


def size(network: nn.Module) -> int:
    """The bytes of a network's weights and of the constants that it keeps: position biases, and
    on a CPU the weights once more, in the kernels' own order."""
    tensors = [*network.parameters(), *network.buffers()]
    for constants in caches_of(network):
        tensors += constants.tensors()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state(path: Path) -> tuple[int, ...]:
    """What changes when the file or the sidecar file beside it does."""
    beside = path.with_suffix(".json")
    stats = [path.stat(), *([beside.stat()] if beside.is_file() else [])]
    return tuple(value for stat in stats for value in (stat.st_mtime_ns, stat.st_size))
