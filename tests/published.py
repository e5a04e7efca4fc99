"""Stand-ins for the published weights: their keys and shapes, reproducible numbers."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .golden import synthetic

GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"

MODELS = (
    "SwinFIR4x6",
    "CRAFT7x6",
    "DAT6x6",
    "DAT12x6",
    "DRCT12x6",
    "DRCTFIR12x6",
    "city96_x1.25",
    "city96_x1.5",
    "city96_x2.0",
    "ttl",
)


def told(model: str) -> dict[str, Any]:
    """The hyperparameters that the weights do not show."""
    return {"scale": float(model.partition("_x")[2])} if model.startswith("city96") else {}


@lru_cache(maxsize=1)  # tests of one model follow each other
def state_dict(model: str) -> dict[str, Tensor]:
    """A state dict as published, derived entries (all zeros) included. Do not write to it."""
    return _draw(model, skip=())


@cache
def small_state_dict(model: str) -> dict[str, Tensor]:
    """The published state dict cut to its first group, for tests that need no depth."""
    return _draw(model, skip=tuple(f"layers.{index}." for index in range(1, 12)))


def _draw(model: str, skip: tuple[str, ...]) -> dict[str, Tensor]:
    drawn = {}
    for key, shape, dtype, role in synthetic.manifest(model):
        if not key.startswith(skip):
            array = np.zeros(shape) if role == "derived" else synthetic.tensor(key, shape)
            drawn[key] = torch.from_numpy(np.asarray(array.astype(dtype)))
    return drawn


def weight_keys(model: str) -> set[str]:
    """The keys that hold weights, without the derived ones."""
    return {key for key, _, _, role in synthetic.manifest(model) if role == "weight"}


def outputs(model: str) -> dict[str, Tensor]:
    """The golden outputs by input shape (`1x4x16x32`; for ttl the target size follows)."""
    return load_file(GOLDEN / "outputs" / f"{model}.safetensors")


def latent(model: str, shape: str) -> Tensor:
    """The input of a golden output."""
    n, c, h, w = map(int, shape.split("x")[:4])
    return torch.from_numpy(synthetic.latent(f"{model}/{shape}", (n, c, h, w)))


def relative_error(a: Tensor, b: Tensor) -> float:
    """Of a against b, in the norm, in float32."""
    return float((a.float() - b.float()).norm() / b.float().norm())
