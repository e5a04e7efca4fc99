"""Comparisons for the page: where their files lie, and what is said when one fails."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from pathlib import Path

from ..weights.errors import WeightsError
from . import comparison, host_page, markup, pictures
from .comparison import Wish

_KEPT = 4
_folders: deque[Path] = deque()
"""Of the last comparisons; pages that are open show them."""


def show(wish: Wish, task: str | None) -> str:
    """The comparison in HTML, or what is wrong."""
    folder = _new_folder()
    try:
        return markup.results(comparison.compare(wish, folder, task), host_page.address)
    except (ValueError, WeightsError) as error:  # all of ours say what to do
        return markup.message(str(error), is_error=True)
    except Exception as error:
        host_page.report(f"Latent upscale: comparing {wish.file.name}")
        text = f"{type(error).__name__}: {error} (the console tells more)"
        return markup.message(text, is_error=True)
    finally:
        if task is not None:
            host_page.finish_task(task)  # also where it never began: the page's bar waits for that


def describe(path: Path) -> str:
    """What a file is that was dropped on the page, or why it cannot be used."""
    try:
        picture = comparison.check(Wish(path, labels=["any"]))
        if picture is not None:
            return markup.message(f"Picture, {picture.width}x{picture.height}")
        space = host_page.chosen_space()
        if space is None:
            return markup.message("Latent")
        count, _, height, width = comparison.read_latents(path, space).shape
    except ValueError as error:
        return markup.message(str(error), is_error=True)
    size = f"{width * pictures.FACTOR}x{height * pictures.FACTOR}"
    return markup.message(
        f"Latent of a picture of {size}" if count == 1 else f"{count} latents of pictures of {size}"
    )


def forget() -> None:
    """Deletes the files of all comparisons."""
    while _folders:
        shutil.rmtree(_folders.popleft(), ignore_errors=True)


def _new_folder() -> Path:
    while len(_folders) >= _KEPT:
        shutil.rmtree(_folders.popleft(), ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="latent-upscale-", dir=host_page.temporary_folder()))
    _folders.append(folder)
    return folder
