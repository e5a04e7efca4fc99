"""The extension's settings as a job reads them. Their keys begin with `latent_upscale_`.

`settings_page` says how they look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..cache import Policy
from ..catalog import CATALOG, DEFAULTS, Entry
from ..spaces import LatentSpace
from . import models

SHOWN_KEY = "latent_upscale_shown"
MISFIT_KEY = "latent_upscale_misfit"
IMG2IMG_KEY = "latent_upscale_img2img"
PRECISION_KEY = "latent_upscale_precision"
POLICY_KEY = "latent_upscale_cache_policy"
BUDGET_KEY = "latent_upscale_gpu_budget"
CHUNK_KEY = "latent_upscale_chunk_limit"
COMPILE_KEY = "latent_upscale_compile"

MISFIT_INFOTEXT = "Latent upscaler misfit"
IMG2IMG_INFOTEXT = "Latent resize"
PRECISION_INFOTEXT = "Latent upscaler precision"

OFF = "None"
ERROR, DEFAULT = "error", "default"
AUTOMATIC = "automatic"
PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def default_key(space: LatentSpace) -> str:
    """The setting that holds the label of the model for "Latent (neural)" in that space."""
    return f"latent_upscale_default_{space.id}"


def default_infotext(space: LatentSpace) -> str:
    """The infotext entry that carries that setting; such names take no dot."""
    return f"Latent neural {space.id.upper()}"


def shows(label: str) -> bool:
    """Whether a model's label is to be in the hires dropdown: one of those chosen, or any where
    none is chosen."""
    value = _value(SHOWN_KEY)
    chosen = {one for one in value if models.by_label(one)} if isinstance(value, list) else set()
    return not chosen or label in chosen


def takes_default() -> bool:
    """Whether a model that does not fit the checkpoint is replaced by the default one."""
    return bool(_value(MISFIT_KEY) == DEFAULT)


def img2img() -> str | None:
    """The label of the model for img2img, or None to leave that to the host."""
    value = _value(IMG2IMG_KEY)
    return value if isinstance(value, str) and value not in ("", OFF) else None


def precision() -> str | None:
    """The key of `PRECISIONS` that the user wants networks to run in; None for the automatic
    choice."""
    value = _value(PRECISION_KEY)
    return value if value in PRECISIONS else None


def policy() -> Policy:
    """What becomes of a model on the GPU after its use."""
    value = _value(POLICY_KEY)
    return next((policy for policy in Policy if policy.value == value), Policy.KEEP)


def budget() -> int | None:
    """The bytes that kept models may take on the GPU; None for the automatic choice."""
    return _megabytes(BUDGET_KEY)


def chunk_limit() -> int | None:
    """The bytes of what a network computes on the way; None for the automatic choice."""
    return _megabytes(CHUNK_KEY)


def compiles() -> bool:
    """Whether networks are to be compiled."""
    return _value(COMPILE_KEY) is True


def _megabytes(key: str) -> int | None:
    value = _value(key)
    return int(value) << 20 if isinstance(value, (int, float)) and value > 0 else None


def _value(key: str) -> Any:
    from modules import shared

    return getattr(shared.opts, key, None)


def default_entry(space: LatentSpace) -> Entry:
    """The model that "Latent (neural)" stands for in that space: the user's, else ours."""
    label = _value(default_key(space))
    entry = models.by_label(label) if isinstance(label, str) else None
    if entry is not None and entry.space is space:
        return entry
    return CATALOG[DEFAULTS[space.id]]
