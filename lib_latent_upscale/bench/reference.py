"""The published code of styler00dollar/ComfyUI-sudo-latent-upscale, run from a folder that the
user has: nothing of it is in this project."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..architectures.network import Network, is_derived

_DAT = {
    "img_size": 64,
    "in_chans": 4,
    "embed_dim": 270,
    "split_size": [8, 16],
    "expansion_factor": 2,
    "qkv_bias": True,
    "upscale": 2,
    "img_range": 1.0,
    "resi_connection": "1conv",
    "upsampler": "pixelshuffle",
}
_DRCT = {"in_chans": 4, "depths": (6,) * 12, "num_heads": (6,) * 12, "upscale": 2}

# The module, the class, and the arguments that the node gives it, by the names of `MODELS`.
_PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SwinFIR4x6": (
        "swinfir_arch",
        "SwinFIR",
        {
            "patch_size": 1,
            "in_chans": 4,
            "embed_dim": 96,
            "depths": [6] * 4,
            "num_heads": [6] * 4,
            "window_size": 8,
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "ape": False,
            "patch_norm": True,
            "upscale": 2,
            "img_range": 1.0,
            "upsampler": "pixelshuffle",
            "resi_connection": "SFB",
        },
    ),
    "DAT6x6": ("dat_arch", "DAT", {**_DAT, "depth": [6] * 6, "num_heads": [6] * 6}),
    "DAT12x6": ("dat_arch", "DAT", {**_DAT, "depth": [6] * 12, "num_heads": [6] * 12}),
    "CRAFT7x6": (
        "craft_arch",
        "CRAFT",
        {
            "in_chans": 4,
            "embed_dim": 180,
            "depths": [6] * 7,
            "num_heads": [6] * 7,
            "split_size_0": 4,
            "split_size_1": 16,
            "mlp_ratio": 2.0,
            "qkv_bias": True,
            "img_range": 1.0,
            "upsampler": "",
            "resi_connection": "1conv",
        },
    ),
    "DRCT12x6": ("drct_arch", "drct", {**_DRCT, "resi_connection": "1conv"}),
    "DRCTFIR12x6": ("drct_arch", "drct", {**_DRCT, "resi_connection": "SFB"}),
}


def published(folder: Path, name: str, weights: Network) -> nn.Module | None:
    """The published network `name` with the weights of ours, or None if the folder has none.

    Raises `RuntimeError` if the two have different weights.
    """
    if name not in _PUBLISHED:
        return None
    module_name, class_name, arguments = _PUBLISHED[name]
    with _importable(folder):
        network = getattr(importlib.import_module(f"arch.{module_name}"), class_name)(**arguments)
    result = network.load_state_dict(weights.to_state_dict(), strict=False)
    differing = [*filter(lambda key: not is_derived(key), result.missing_keys)]
    if differing or result.unexpected_keys:
        raise RuntimeError(f"{name}: other weights: {(differing + result.unexpected_keys)[:4]}")
    return network.eval().requires_grad_(False)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes `arch` of the folder importable, with stand-ins for the few names it has of timm."""

    class DropPath(nn.Identity):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

    layers = ModuleType("timm.models.layers")
    layers.__dict__.update(
        DropPath=DropPath,
        trunc_normal_=lambda tensor, *_, **__: tensor,  # the weights are loaded afterwards
        to_2tuple=lambda side: (side, side),
    )
    stand_ins = {
        "timm": ModuleType("timm"),
        "timm.models": ModuleType("timm.models"),
        "timm.models.layers": layers,
    }
    before = dict(sys.modules)
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in sys.modules.keys() - before.keys():
            if name.partition(".")[0] in ("arch", "timm"):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in stand_ins if name in before})
