"""The models that the WebUI offers, their files, and those that are loaded."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .. import preferences
from ..cache import Model, UpscalerCache
from ..catalog import CATALOG, Entry
from ..console import bar
from ..downloads import Downloads
from ..engine import Engine
from ..preferences import Preferences
from ..shelf import Shelf
from ..spaces import LatentSpace
from ..weights import files, hand_placed
from ..weights.errors import FetchError, MissingWeightsError
from ..weights.fetching import Fetcher, Progress, Stopped, obtain
from . import host, residence

NEURAL = "Latent (neural)"
"""The label that stands for the default model of the checkpoint's latent space."""

cache = UpscalerCache(residence=residence.of_this_host())
engine = Engine(
    cache, residence.free_all, lambda line: print(f"Latent upscale: {line}", flush=True)
)
_hand_placed: Sequence[Entry] = ()


def refresh(taken: Container[str] = ()) -> None:
    """Looks for hand-placed files anew; says in the log why one cannot be used.

    taken: labels that are the host's own.
    """
    global _hand_placed
    found = hand_placed.scan(folders())
    _hand_placed = [entry for entry in found.entries if entry.label not in taken]
    clashes = [entry for entry in found.entries if entry.label in taken]
    problems = [f"{one.id}: the WebUI has a {one.label}; rename the file" for one in clashes]
    for problem in (*found.problems, *problems):
        print(f"Latent upscale: {problem}")


def entries(space: LatentSpace | None = None) -> list[Entry]:
    """The catalogue's models and the hand-placed ones, in the order of the dropdown."""
    known = [*CATALOG.values(), *_hand_placed]
    return [entry for entry in known if space is None or entry.space is space]


def by_label(label: str) -> Entry | None:
    """The model with that dropdown label."""
    return next((entry for entry in entries() if entry.label == label), None)


def wanted() -> Preferences:
    """What the user wants of downloads and folders."""
    from modules import shared

    return preferences.gather(shared.opts.data)


def folders() -> tuple[Path, ...]:
    """The folders of models, the one for downloads first."""
    return _folders(wanted())


def _folders(preferred: Preferences) -> tuple[Path, ...]:
    return files.model_folders(preferred.folder or None)


def load(entry: Entry) -> Model:
    """The model, its file fetched if this is its first use. Raises `WeightsError`."""
    return cache.get(_file(entry))


def title(model: Model) -> str:
    """A model's name for people: of its label what stands in the brackets, or its file's name."""
    entry = model.upscaler.entry
    return entry.label.removeprefix("Latent (").removesuffix(")") if entry else model.path.stem


def shelf() -> Shelf:
    """All models with their files, as the settings are now."""
    preferred = wanted()
    where = _folders(preferred)
    return Shelf(where, _hand_placed, _fetcher(where[0], preferred), cache)


downloads = Downloads(shelf)


def forget() -> None:
    """Lets go of all loaded models, and stops downloads."""
    downloads.stop()
    cache.clear()


def _fetcher(folder: Path, preferred: Preferences) -> Fetcher:
    return Fetcher(folder, preferred.mirror, release=cache.release)


def _file(entry: Entry) -> Path:
    preferred = wanted()
    where = _folders(preferred)
    with _shown(f"Latent upscale: fetching {entry.id}") as progress:
        fetcher = replace(
            _fetcher(where[0], preferred), progress=progress, should_stop=host.interrupted
        )
        try:
            files.find(entry, where)
        except MissingWeightsError as missing:
            if entry.file.url is None or not preferred.fetch_on_use:
                raise
            print(f"Latent upscale: fetching {entry.id} ({entry.file.size / 1e6:.0f} MB)")
            started = time.perf_counter()
            try:
                path = fetcher.fetch(entry)
            except Stopped:
                raise
            except FetchError as error:
                raise FetchError(f"{error}. {missing}") from error
            print(f"Latent upscale: {path.name} in {time.perf_counter() - started:.1f} s")
            return path
        return obtain(entry, where, fetcher)


@contextmanager
def _shown(text: str) -> Iterator[Progress]:
    """Progress in the WebUI's bar and on the console."""
    with bar(text) as on_console, host.progress_bar(text) as on_page:

        def progress(done: int, total: int | None) -> None:
            on_console(done, total)
            on_page(done, total)

        yield progress
