"""How each host shares its device's memory with our networks.

Forge and reForge keep a list of what is on the device and drop from it what they need the room
of; a network of ours is on that list like their own. AUTOMATIC1111 has no such list: with
--medvram and --lowvram, one part of the checkpoint is on the device, and has to leave first.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from ..cache import PlainResidence, Residence


def of_this_host() -> Residence:
    """The one for the WebUI that runs."""
    for manager, patcher in _MANAGERS:
        try:
            return ManagedResidence(
                importlib.import_module(manager), importlib.import_module(patcher).ModelPatcher
            )
        except ImportError:
            continue
    return A1111Residence()


_MANAGERS = (
    ("backend.memory_management", "backend.patcher.base"),  # Forge
    ("ldm_patched.modules.model_management", "ldm_patched.modules.model_patcher"),  # reForge
)


class A1111Residence(PlainResidence):
    """AUTOMATIC1111's."""

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        # It has nothing else that could make room: what does not fit is the engine's to deal with.
        from modules import devices, lowvram, shared

        if lowvram.is_enabled(shared.sd_model):
            lowvram.send_everything_to_cpu()  # its next use brings it back
        devices.torch_gc()
        super().enter(network, device)

    def room(self, device: torch.device) -> tuple[int, int] | None:
        from modules import lowvram, shared

        # The checkpoint's next part wants all there is.
        return (0, 1) if lowvram.is_enabled(shared.sd_model) else super().room(device)


class ManagedResidence:
    """Forge's and reForge's: a patcher for each network, which their manager may unload.

    manager: their module of memory management. patcher_class: their ModelPatcher.
    """

    def __init__(self, manager: Any, patcher_class: Any) -> None:
        self._manager, self._patcher_class = manager, patcher_class
        # One for each network, and held: reForge's list holds it weakly.
        self._patchers: dict[nn.Module, Any] = {}

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        patcher = self._patchers.get(network)
        if patcher is None:
            patcher = self._patcher_class(
                network, load_device=device, offload_device=torch.device("cpu")
            )
            self._patchers[network] = patcher
        self._manager.load_models_gpu([patcher], memory_required=working)
        # A host that is short of memory brings only those parts there that it can swap.
        network.to(device)

    def leave(self, network: nn.Module) -> None:
        patcher = self._patchers.pop(network, None)
        if patcher is None:
            return
        loaded = self._manager.current_loaded_models
        for index in reversed(range(len(loaded))):
            if loaded[index].model is patcher:
                loaded.pop(index).model_unload()

    def room(self, device: torch.device) -> tuple[int, int] | None:
        return self._manager.get_free_memory(device), self._manager.get_total_memory(device)


def free_all(device: torch.device) -> None:
    """What a host can free when memory has run out: all that is its own."""
    from modules import devices

    for manager, _ in _MANAGERS:
        try:
            importlib.import_module(manager).unload_all_models()
        except (ImportError, AttributeError):
            continue
    devices.torch_gc()
