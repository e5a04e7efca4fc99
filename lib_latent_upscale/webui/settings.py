"""The extension's settings. Their keys begin with `latent_upscale_`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..cache import Policy
from ..catalog import CATALOG, DEFAULTS, Entry
from ..preferences import FETCH_KEY, FETCH_ON_USE_KEY, FOLDER_KEY, MIRROR_KEY, SETS, Preferences
from ..spaces import SPACES, LatentSpace
from . import models

IMG2IMG_KEY = "latent_upscale_img2img"
PRECISION_KEY = "latent_upscale_precision"
POLICY_KEY = "latent_upscale_cache_policy"
BUDGET_KEY = "latent_upscale_gpu_budget"

IMG2IMG_INFOTEXT = "Latent resize"
PRECISION_INFOTEXT = "Latent upscaler precision"

OFF = "None"
AUTOMATIC = "automatic"
PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

_SECTION = ("latent_upscale", "Latent upscale")


def default_key(space: LatentSpace) -> str:
    """The setting that holds the label of the model for "Latent (neural)" in that space."""
    return f"latent_upscale_default_{space.id}"


def default_infotext(space: LatentSpace) -> str:
    """The infotext entry that carries that setting; such names take no dot."""
    return f"Latent neural {space.id.upper()}"


def add(refresh: Callable[[], None]) -> None:
    """Adds the settings, or leaves them as they are where they have been added.

    refresh: looks for hand-placed models anew.
    """
    import gradio as gr

    for space in SPACES.values():
        default = DEFAULTS[space.id]
        if default is None:
            continue  # there is no model to choose from yet
        _add(
            default_key(space),
            CATALOG[default].label,
            f'Model for "Latent (neural)" with {space.label} checkpoints',
            "used when Latent (neural) is chosen as the hires upscaler",
            component=gr.Dropdown,
            component_args=_choices(space),
            refresh=refresh,
            infotext=default_infotext(space),
        )
    _add(
        IMG2IMG_KEY,
        OFF,
        'Network for img2img\'s "Just resize (latent upscale)"',
        f"{OFF}: the WebUI's own interpolation",
        component=gr.Dropdown,
        component_args=lambda: {
            "choices": [OFF, models.NEURAL, *(entry.label for entry in models.entries())]
        },
        refresh=refresh,
        infotext=IMG2IMG_INFOTEXT,
    )
    _add(
        PRECISION_KEY,
        AUTOMATIC,
        "Precision of the networks",
        "automatic: half precision where the checkpoint's own is; a model that overflows in it "
        "runs in float32 from then on",
        component=gr.Radio,
        component_args={"choices": [AUTOMATIC, *PRECISIONS]},
        infotext=PRECISION_INFOTEXT,
    )
    _add(
        POLICY_KEY,
        Policy.KEEP.value,
        "After its use, a model on the GPU",
        "keep: it stays while there is room; offload: it is kept in main memory; unload: it is "
        "loaded anew for each job",
        component=gr.Radio,
        component_args={"choices": [policy.value for policy in Policy]},
    )
    _add(
        BUDGET_KEY,
        0,
        "Memory that kept models may take on the GPU, in MB",
        "0: models up to 64 MB always stay, larger ones while half of the memory is free",
        component=gr.Slider,
        component_args={"minimum": 0, "maximum": 4096, "step": 16},
    )
    # What a request by the API must not change: where files come from and go to.
    own = Preferences()
    _add(
        FETCH_KEY,
        own.fetch,
        "Models to download when the WebUI starts",
        "recommended: SwinFIR for SD1.5 and for SDXL, 29 MB each; all: 1.7 GB",
        component=gr.Radio,
        component_args={"choices": list(SETS)},
        restrict_api=True,
    )
    _add(
        FETCH_ON_USE_KEY,
        own.fetch_on_use,
        "Download a model when it is first used",
        "else a job that wants one that is not there ends before its first pass, and says so",
        restrict_api=True,
    )
    _add(
        FOLDER_KEY,
        own.folder,
        "Folder of models",
        "downloads go there, and files put there show in the dropdown; empty: this extension's "
        "models/ only",
        restrict_api=True,
    )
    _add(
        MIRROR_KEY,
        own.mirror,
        "Mirror to download from",
        "an address that is tried first; {url} in it stands for the published address, {file} "
        "for the file's name",
        restrict_api=True,
    )


def _add(key: str, default: Any, label: str, info: str, **how: Any) -> None:
    from modules import shared

    option = shared.OptionInfo(default, label, section=_SECTION, **how).info(info)
    shared.opts.add_option(key, option)


def _choices(space: LatentSpace) -> Callable[[], dict[str, Any]]:
    return lambda: {"choices": [entry.label for entry in models.entries(space)]}


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
    megabytes = _value(BUDGET_KEY)
    return int(megabytes) << 20 if isinstance(megabytes, (int, float)) and megabytes > 0 else None


def _value(key: str) -> Any:
    from modules import shared

    return getattr(shared.opts, key, None)


def default_entry(space: LatentSpace) -> Entry | None:
    """The model that "Latent (neural)" stands for in that space: the user's, else ours."""
    label = _value(default_key(space))
    entry = models.by_label(label) if isinstance(label, str) else None
    if entry is not None and entry.space is space:
        return entry
    default = DEFAULTS[space.id]
    return CATALOG[default] if default is not None else None
