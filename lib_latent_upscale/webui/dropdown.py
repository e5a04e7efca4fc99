"""The hires dropdown: which of our models it shows, and the refresh button beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import models, settings

_DROPDOWN = "txt2img_hr_upscaler"


def keep_right(refresh: Callable[[], None]) -> Callable[..., None]:
    """A callback for `on_after_component`: hides what is hidden, now and whenever the page is
    loaded, and puts the button behind.

    refresh: looks for hand-placed models anew, and brings the host's list up to date.
    """

    def after_component(component: Any, **named: Any) -> None:
        if named.get("elem_id") != _DROPDOWN:
            return
        import gradio as gr
        from gradio.context import Context
        from modules.ui_common import create_refresh_button

        if Context.root_block is None:
            return  # gradio 4 makes a component anew for each update of it, outside of any page

        # Here the hosts have made the component, with all that they know of.
        component.choices = [one for one in component.choices if _shown(_name(one))]
        create_refresh_button(component, refresh, _choices, f"{_DROPDOWN}_refresh")
        # A hidden model's name is taken all the same where it is pasted; gradio 3 takes any.
        pasted = {} if gr.__version__.startswith("3.") else {"allow_custom_value": True}
        # What is made stays as it is until the UI is reloaded; the settings may change before.
        Context.root_block.load(
            lambda: gr.update(**_choices(), **pasted),
            inputs=[],
            outputs=[component],
            show_progress=False,
            queue=False,
            api_name=False,
        )

    return after_component


def _choices() -> dict[str, list[str]]:
    """The dropdown's choices, as the WebUI itself puts them together, without the hidden ones."""
    from modules import shared

    upscalers = [upscaler.name for upscaler in shared.sd_upscalers]
    return {"choices": [*filter(_shown, shared.latent_upscale_modes), *upscalers]}


def _shown(name: str) -> bool:
    """Whether a name is to be in the dropdown: all are but our models that the user hides."""
    return models.by_label(name) is None or settings.shows(name)


def _name(choice: Any) -> str:
    """Of a choice as the component has it: gradio 4 keeps pairs of a label and a value."""
    return str(choice[1] if isinstance(choice, tuple) else choice)
