"""The page's list of models: fetching, checking, deleting and unloading them.

Fetching needs no turn in the WebUI's queue: pictures can be made meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..spaces import LatentSpace
from ..weights.errors import WeightsError
from . import host, markup, models

_PERIOD = 0.3  # seconds between two looks at a download

Shown = tuple[str, str]
"""A message and the list, in HTML."""


def labels(space: LatentSpace | None = None) -> list[str]:
    """What can be chosen for latents of that space, or of any."""
    return [models.NEURAL, *(entry.label for entry in models.entries(space))]


def table() -> str:
    """The list as it is now."""
    return markup.models(models.shelf().items(), models.downloads.all())


def fetch(_action: str, id: str) -> Iterator[Shown]:
    """Begins to fetch a model, and shows how far it is until it ends."""
    try:
        models.downloads.start(id)
    except WeightsError as error:
        yield _failed(error)
        return
    yield from _watch(id)


def watch() -> Iterator[Shown]:
    """Shows how far the download is that is under way, where the page was loaded anew."""
    under_way = [one.id for one in models.downloads.all() if not one.state.ended]
    if under_way:
        yield from _watch(under_way[0])
    else:
        yield "", table()


def _watch(id: str) -> Iterator[Shown]:
    shown = table()
    while (download := models.downloads.get(id)) is not None and not download.state.ended:
        yield markup.progress(download), shown
        time.sleep(_PERIOD)
    yield markup.progress(download) if download is not None else "", table()


def act(action: str, id: str) -> Shown:
    """What a button in the list asks for, other than fetching."""
    shelf = models.shelf()
    try:
        if action == "verify":
            said = f"{id}: {shelf.verify(id)}"
        elif action == "delete":
            with host.queue():  # not under a job that uses it
                deleted = shelf.delete(id)
            said = f"{id}: deleted {', '.join(path.name for path in deleted)}"
        elif action == "unload":
            with host.queue():
                shelf.unload(id)
            said = f"{id}: unloaded"
        elif action == "stop":
            models.downloads.stop(id)
            # To its end: what `fetch` shows last must not be overwritten by something older.
            *_, last = _watch(id)
            return last
        else:
            raise WeightsError(f"{action}: there is no such action")
    except (WeightsError, OSError) as error:
        return _failed(error)
    return markup.message(said), table()


def unload_all() -> Shown:
    """Takes all models out of memory, when no job runs."""
    with host.queue():
        models.shelf().unload()
    return markup.message("All models are unloaded."), table()


def _failed(error: Exception) -> Shown:
    return markup.message(str(error), is_error=True), table()
