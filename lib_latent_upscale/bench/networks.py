"""The networks that are measured: the published configurations with random weights, so that no
file is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architectures.city96 import City96
from ..architectures.compact import Compact
from ..architectures.craft import CRAFT
from ..architectures.dat import DAT
from ..architectures.drct import DRCT
from ..architectures.halfway import Halfway
from ..architectures.network import Network
from ..architectures.swinfir import SwinFIR
from ..architectures.ttl import Ttl

_SWIN = {"channels": 4, "scale": 2, "tail_dim": 64}
_DAT: dict[str, Any] = {**_SWIN, "dim": 270, "heads": 6, "hidden": 540}
_DRCT: dict[str, Any] = {
    **_SWIN,
    "dim": 180,
    "groups": 12,
    "growth": 32,
    "heads": (6, 4, 2, 6, 4),
    "window": 16,
    "hidden": (360, 424, 488, 276, 308),
}
_TTL_ATTENDS = tuple(block in (1, 10) for block in range(12))


@dataclass(frozen=True)
class Model:
    """A network by the name under which its golden outputs lie in tests/."""

    network: type[Network]
    hyperparameters: dict[str, Any]

    def build(self) -> Network:
        """The network in eval mode, with the same random weights each time."""
        torch.manual_seed(0)
        network = self.network(**self.hyperparameters).eval().requires_grad_(False)
        for key, value in network.named_parameters():
            if key.endswith("relative_position_bias_table"):
                value.normal_()
        return network

    def call(self, network: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The network's output: twice the size where it has no factor of its own."""
        height, width = x.shape[-2:]
        free = self.network is Ttl
        return network(x, size=(2 * height, 2 * width)) if free else network(x)


MODELS = {
    "SwinFIR4x6": Model(
        SwinFIR,
        {**_SWIN, "dim": 96, "depths": (6,) * 4, "heads": 6, "window": 8, "hidden": 384},
    ),
    "DAT6x6": Model(DAT, {**_DAT, "depths": (6,) * 6}),
    "DAT12x6": Model(DAT, {**_DAT, "depths": (6,) * 12}),
    "CRAFT7x6": Model(
        CRAFT,
        {
            "channels": 4,
            "dim": 180,
            "depths": (6,) * 7,
            "heads": 6,
            "hidden": 360,
            "fusion_hidden": 478,
            "scale": 2,
        },
    ),
    "DRCT12x6": Model(DRCT, {**_DRCT, "spectral": False}),
    "DRCTFIR12x6": Model(DRCT, {**_DRCT, "spectral": True}),
    "city96_x2.0": Model(City96, {"channels": 4, "dim": 64, "depth": 16, "scale": 2.0}),
    "ttl": Model(
        Ttl,
        {
            "channels": 4,
            "dim": 128,
            "embedding_dim": 32,
            "in_blocks": _TTL_ATTENDS,
            "out_blocks": _TTL_ATTENDS,
        },
    ),
    "compact": Model(Compact, {"channels": 4, "dim": 64, "depth": 10, "scale": 2}),
    "halfway": Model(Halfway, {"channels": 4, "dim": 64, "coarse": 6, "fine": 3, "folding": 3}),
}
