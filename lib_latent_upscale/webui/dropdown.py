"""The refresh button beside the hires dropdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_DROPDOWN = "txt2img_hr_upscaler"


def add_refresh_button(refresh: Callable[[], None]) -> Callable[..., None]:
    """A callback for `on_after_component`: puts the button behind the dropdown.

    refresh: looks for hand-placed models anew, and brings the host's list up to date.
    """

    def after_component(component: Any, **named: Any) -> None:
        if named.get("elem_id") != _DROPDOWN:
            return
        from modules.ui_common import create_refresh_button

        create_refresh_button(component, refresh, _choices, f"{_DROPDOWN}_refresh")

    return after_component


def _choices() -> dict[str, list[str]]:
    """The dropdown's choices, as the WebUI itself puts them together."""
    from modules import shared

    upscalers = [upscaler.name for upscaler in shared.sd_upscalers]
    return {"choices": [*shared.latent_upscale_modes, *upscalers]}
