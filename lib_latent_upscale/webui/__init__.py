"""The extension inside a WebUI: AUTOMATIC1111, Forge or reForge.

Only this package and `scripts/` import the WebUI's modules.
"""

from __future__ import annotations

from typing import Any

from . import dropdown, hires, img2img, settings_page, xyz


def install() -> None:
    """Puts the upscalers into the WebUI; called when the script file is imported.

    Being called twice is the same as once. "Reload UI" undoes it by `uninstall` first.
    """
    from modules import script_callbacks

    # Not from on_ui_settings: with --nowebui that never comes, and the API could not set them.
    settings_page.add(hires.refresh)
    hires.install()
    img2img.install()
    xyz.install()
    script_callbacks.on_before_ui(xyz.install)  # where a host loads its scripts after ours
    script_callbacks.on_after_component(dropdown.add_refresh_button(hires.refresh))
    script_callbacks.on_app_started(_add_api)
    script_callbacks.on_ui_tabs(_tab)
    script_callbacks.on_script_unloaded(uninstall)


def _add_api(_page: Any, app: Any) -> None:
    from . import api  # as late as this: with its models, it takes a moment

    api.add_to(app)


def _tab() -> list[tuple[Any, str, str]]:
    from . import tab  # not with --nowebui

    return tab.build()


def uninstall() -> None:
    """Takes out what `install` put in."""
    from . import results

    results.forget()
    hires.uninstall()
    img2img.uninstall()
    xyz.uninstall()
