"""The extension inside a WebUI: AUTOMATIC1111, Forge or reForge.

Only this package and `scripts/` import the WebUI's modules.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import dropdown, hires, img2img, settings_page, xyz


def install() -> None:
    """Puts the upscalers into the WebUI; called when the script file is imported.

    Being called twice is the same as once. "Reload UI" undoes it by `uninstall` first.
    """
    # Not from on_ui_settings: with --nowebui that never comes, and the API could not set them.
    settings_page.add(hires.refresh)
    hires.install()
    img2img.install()
    xyz.install()
    # At each registration the hosts look up the module of every call on the stack, of which an
    # import has many: most of what this extension added to their start. A thread has none.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_register).result()


def _register() -> None:
    from modules import script_callbacks

    script_callbacks.on_after_component(dropdown.keep_right(hires.refresh))
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
