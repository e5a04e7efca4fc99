"""How networks share a device with each host, by doubles of what the hosts have for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_latent_upscale.cache import PlainResidence
from lib_latent_upscale.webui.residence import A1111Residence, ManagedResidence, of_this_host

DEVICE = torch.device("cpu")


class Patcher:
    """What Forge and reForge keep for each model."""

    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


class Loaded:
    def __init__(self, model: Patcher) -> None:
        self.model, self.unloads = model, 0

    def model_unload(self) -> None:
        self.unloads += 1


class Manager(ModuleType):
    """Their memory manager: a list of what is on the device, the latest first."""

    def __init__(self) -> None:
        super().__init__("manager")
        self.current_loaded_models: list[Loaded] = []
        self.loads = 0
        self.asked: list[int] = []

    def load_models_gpu(self, patchers: list[Patcher], memory_required: int = 0) -> None:
        self.asked.append(memory_required)
        for patcher in patchers:
            if not any(loaded.model is patcher for loaded in self.current_loaded_models):
                self.loads += 1
                self.current_loaded_models.insert(0, Loaded(patcher))

    def get_free_memory(self, device: torch.device) -> int:
        return 3

    def get_total_memory(self, device: torch.device) -> int:
        return 4


@pytest.fixture
def network() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.fixture(
    params=[
        ("backend.memory_management", "backend.patcher.base"),
        ("ldm_patched.modules.model_management", "ldm_patched.modules.model_patcher"),
    ],
    ids=["forge", "reforge"],
)
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Manager:
    where, patcher = request.param
    for name in (where, patcher):
        for end in [i for i, character in enumerate(name) if character == "."]:
            package = ModuleType(name[:end])
            package.__path__ = []
            monkeypatch.setitem(sys.modules, name[:end], package)
    manager, base = Manager(), ModuleType(patcher)
    base.ModelPatcher = Patcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, where, manager)
    monkeypatch.setitem(sys.modules, patcher, base)
    return manager


def test_a_network_is_the_managers_guest(manager: Manager, network: nn.Module) -> None:
    residence = of_this_host()
    assert isinstance(residence, ManagedResidence)
    for _ in range(2):
        residence.enter(network, DEVICE)
    (loaded,) = manager.current_loaded_models
    assert loaded.model.model is network and loaded.model.load_device == DEVICE
    assert manager.loads == 1
    assert residence.room(DEVICE) == (3, 4)


def test_the_manager_is_told_what_a_run_needs(manager: Manager, network: nn.Module) -> None:
    residence = of_this_host()
    residence.enter(network, DEVICE, 5 << 30)
    residence.enter(network, DEVICE, 6 << 30)  # when it is there already, too
    assert manager.asked == [5 << 30, 6 << 30]


def test_it_comes_back_when_the_manager_has_sent_it_away(
    manager: Manager, network: nn.Module
) -> None:
    residence = of_this_host()
    residence.enter(network, DEVICE)
    patcher = manager.current_loaded_models.pop().model
    residence.enter(network, DEVICE)
    assert manager.current_loaded_models[0].model is patcher


def test_leaving_takes_it_off_the_managers_list_only_it(
    manager: Manager, network: nn.Module
) -> None:
    residence = of_this_host()
    other = Loaded(Patcher(nn.Linear(1, 1), DEVICE, DEVICE))
    manager.current_loaded_models.append(other)
    residence.enter(network, DEVICE)
    loaded = manager.current_loaded_models[0]
    residence.leave(network)
    assert manager.current_loaded_models == [other]
    assert (loaded.unloads, other.unloads) == (1, 0)
    residence.leave(network)  # twice is the same as once


@pytest.fixture
def a1111(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """AUTOMATIC1111's modules, as far as a residence sees them."""
    state = SimpleNamespace(lowvram=False, sent_away=0, collected=0)

    def count(name: str) -> Any:
        return lambda: setattr(state, name, getattr(state, name) + 1)

    modules = ModuleType("modules")
    modules.__path__ = []
    modules.devices = SimpleNamespace(torch_gc=count("collected"))  # type: ignore[attr-defined]
    modules.lowvram = SimpleNamespace(  # type: ignore[attr-defined]
        is_enabled=lambda model: state.lowvram, send_everything_to_cpu=count("sent_away")
    )
    modules.shared = SimpleNamespace(sd_model=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    yield state


def test_a1111_with_all_its_memory(a1111: SimpleNamespace, network: nn.Module) -> None:
    residence = of_this_host()
    assert isinstance(residence, A1111Residence)
    residence.enter(network, DEVICE)
    assert (a1111.sent_away, a1111.collected) == (0, 1)
    assert residence.room(DEVICE) == PlainResidence().room(DEVICE)


def test_a1111_with_medvram(a1111: SimpleNamespace, network: nn.Module) -> None:
    a1111.lowvram = True
    residence = of_this_host()
    residence.enter(network, DEVICE)
    assert a1111.sent_away == 1
    room = residence.room(DEVICE)
    assert room is not None and room[0] <= room[1] // 2  # so that nothing large stays
