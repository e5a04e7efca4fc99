"""The extension's section of the settings page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..cache import Policy
from ..preferences import FETCH_KEY, FETCH_ON_USE_KEY, FOLDER_KEY, MIRROR_KEY, SETS, Preferences
from ..spaces import SPACES, LatentSpace
from . import models, settings

_SECTION = ("latent_upscale", "Latent upscale")


def add(refresh: Callable[[], None]) -> None:
    """Adds the settings, or leaves them as they are where they have been added.

    refresh: looks for hand-placed models anew.
    """
    _add_models(refresh)
    _add_running()
    _add_files()


def _add_models(refresh: Callable[[], None]) -> None:
    import gradio as gr
    from modules.ui_components import DropdownMulti

    for space in SPACES.values():
        key = settings.default_key(space)
        _add_dropdown(
            key,
            settings.AUTOMATIC,
            f'Model for "Latent (neural)" with {space.label} checkpoints',
            "automatic: the one that this extension recommends",
            component_args=_choices(key, partial(_defaults, space)),
            refresh=refresh,
            infotext=settings.default_infotext(space),
        )
    _add(
        settings.SHOWN_KEY,
        [],
        "Models in the dropdown of Hires. fix",
        "none chosen: all; a change shows when the page is loaded again, or the button beside the "
        "dropdown pressed; the others still work by their names, in requests and pasted parameters",
        component=DropdownMulti,  # an update of gr.Dropdown takes no `multiselect`
        component_args=_choices(settings.SHOWN_KEY, _labels),
        refresh=refresh,
    )
    _add(
        settings.MISFIT_KEY,
        settings.ERROR,
        "When the model chosen does not fit the checkpoint",
        "error: the job ends before its first pass and says which models fit; default: it takes "
        "the default model for the checkpoint, and the picture's parameters say so",
        component=gr.Radio,
        component_args={"choices": [settings.ERROR, settings.DEFAULT]},
        infotext=settings.MISFIT_INFOTEXT,
    )
    _add_dropdown(
        settings.IMG2IMG_KEY,
        settings.OFF,
        'Network for img2img\'s "Just resize (latent upscale)"',
        f"{settings.OFF}: the WebUI's own interpolation",
        component_args=_choices(
            settings.IMG2IMG_KEY, lambda: [settings.OFF, models.NEURAL, *_labels()]
        ),
        refresh=refresh,
        infotext=settings.IMG2IMG_INFOTEXT,
    )


def _add_running() -> None:
    import gradio as gr

    _add(
        settings.PRECISION_KEY,
        settings.AUTOMATIC,
        "Precision of the networks",
        "automatic: half precision where the checkpoint's own is; a model that overflows in it "
        "runs in float32 from then on",
        component=gr.Radio,
        component_args={"choices": [settings.AUTOMATIC, *settings.PRECISIONS]},
        infotext=settings.PRECISION_INFOTEXT,
    )
    _add(
        settings.POLICY_KEY,
        Policy.KEEP.value,
        "After its use, a model on the GPU",
        "keep: it stays while there is room; offload: it is kept in main memory; unload: it is "
        "loaded anew for each job",
        component=gr.Radio,
        component_args={"choices": [policy.value for policy in Policy]},
    )
    _add(
        settings.BUDGET_KEY,
        0,
        "Memory that kept models may take on the GPU, in MB",
        "0: models up to 64 MB always stay, larger ones while half of the memory is free",
        component=gr.Slider,
        component_args={"minimum": 0, "maximum": 4096, "step": 16},
    )
    _add(
        settings.CHUNK_KEY,
        0,
        "Memory for a network's intermediate values, in MB",
        "0: 256, and less where memory runs out; large pictures are worked through in pieces of "
        "that size, which changes the time they take and not the result",
        component=gr.Slider,
        component_args={"minimum": 0, "maximum": 4096, "step": 16},
    )
    _add(
        settings.COMPILE_KEY,
        False,
        "Compile the networks with torch.compile",
        "for faster jobs once a network is compiled for a size, which takes up to minutes beside "
        "the jobs, and where it is found to be faster; on a CPU it changes little; needs a model "
        "that is kept",
    )


def _add_files() -> None:
    """What a request by the API must not change: where files come from and go to."""
    import gradio as gr

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


def _add_dropdown(key: str, default: Any, label: str, info: str, **how: Any) -> None:
    """As `_add`. A page with gradio 4 does not hang an explanation on a dropdown, as it does on
    all else: there the dropdown gets it itself."""
    import gradio as gr

    old = gr.__version__.partition(".")[0] == "3"
    component = gr.Dropdown if old else partial(gr.Dropdown, info=info)
    _add(key, default, label, info, component=component, **how)


def _choices(key: str, found: Callable[[], Iterable[str]]) -> Callable[[], dict[str, Any]]:
    """A dropdown's arguments, worked out when it is made and when it is refreshed.

    What the setting holds is always among the choices: a model whose file is gone for now must
    not make the page lose it.
    """

    def arguments() -> dict[str, Any]:
        from modules import shared

        choices, value = list(found()), shared.opts.data.get(key)
        kept = value if isinstance(value, list) else [value]
        choices += [one for one in kept if isinstance(one, str) and one and one not in choices]
        return {"choices": choices}

    return arguments


def _defaults(space: LatentSpace) -> list[str]:
    return [settings.AUTOMATIC, *_labels(space)]


def _labels(space: LatentSpace | None = None) -> list[str]:
    return [entry.label for entry in models.entries(space)]
