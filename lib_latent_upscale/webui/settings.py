"""The extension's settings. Their keys begin with `latent_upscale_`."""

from __future__ import annotations

from ..catalog import CATALOG, DEFAULTS, Entry, by_label, entries
from ..spaces import SPACES, LatentSpace

_SECTION = ("latent_upscale", "Latent upscale")


def default_key(space: LatentSpace) -> str:
    """The setting that holds the label of the model for "Latent (neural)" in that space."""
    return f"latent_upscale_default_{space.id}"


def default_infotext(space: LatentSpace) -> str:
    """The infotext entry that carries that setting; such names take no dot."""
    return f"Latent neural {space.id.upper()}"


def add() -> None:
    """Adds the settings, or leaves them as they are where they have been added."""
    import gradio as gr
    from modules import shared

    for space in SPACES.values():
        labels = [entry.label for entry in entries(space)]
        default = DEFAULTS[space.id]
        if default is None:
            continue  # there is no model to choose from yet
        shared.opts.add_option(
            default_key(space),
            shared.OptionInfo(
                CATALOG[default].label,
                f'Model for "Latent (neural)" with {space.label} checkpoints',
                gr.Dropdown,
                {"choices": labels},
                section=_SECTION,
                infotext=default_infotext(space),
            ).info("used when Latent (neural) is chosen as the hires upscaler"),
        )


def default_entry(space: LatentSpace) -> Entry | None:
    """The model that "Latent (neural)" stands for in that space: the user's, else ours."""
    from modules import shared

    label = getattr(shared.opts, default_key(space), None)
    entry = by_label(label) if isinstance(label, str) else None
    if entry is not None and entry.space is space:
        return entry
    default = DEFAULTS[space.id]
    return CATALOG[default] if default is not None else None
