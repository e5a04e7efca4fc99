"""The models there are to have: which are here, and getting, checking and deleting their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from .cache import UpscalerCache
from .catalog import CATALOG, Entry
from .weights import checking, files, ledger, reading
from .weights.errors import MissingWeightsError, WeightsError
from .weights.fetching import Fetcher, Progress, arrived


class UnknownModelError(WeightsError):
    """An id that neither the catalogue nor the folders of models have."""


class Origin(Enum):
    """Where a model's file is from."""

    BUNDLED = "bundled"
    """It ships with the extension."""
    CATALOGUE = "catalogue"
    """It is fetched from its author's address."""
    HAND_PLACED = "hand-placed"
    """The user put it there."""


@dataclass(frozen=True)
class Item:
    """A model and what is here of it."""

    entry: Entry
    origin: Origin
    path: Path | None
    """Its file; None where there is none that may be used."""
    size: int
    """Bytes: of the file, or else what a download of it has."""
    arrived: int
    """Bytes of a download that has begun and not ended."""
    problem: str | None
    """Why its file may not be used."""
    loaded: Mapping[str, int]
    """Bytes of its weights in memory, by device."""

    @property
    def present(self) -> bool:
        return self.path is not None


@dataclass(frozen=True)
class Verified:
    """A file that is what it was."""

    path: Path
    sha256: str
    compared: str
    """What its hash was compared with, in words; empty where nothing is known to compare."""

    def __str__(self) -> str:
        compared = f", {self.compared}" if self.compared else "; none is known to compare"
        return f"sha256 {self.sha256}{compared}"


@dataclass(frozen=True)
class Shelf:
    """The models of the catalogue and the hand-placed ones.

    folders: where their files lie, the one for downloads first.
    hand_placed: those of `weights.hand_placed.scan`.
    fetcher: how to fetch; its folder is the first of `folders`.
    cache: that of the loaded models, if there is one.
    """

    folders: Sequence[Path]
    hand_placed: Sequence[Entry] = ()
    fetcher: Fetcher | None = None
    cache: UpscalerCache | None = None

    @property
    def entries(self) -> Sequence[Entry]:
        """All models, the catalogue's first."""
        return (*CATALOG.values(), *self.hand_placed)

    def entry(self, id: str) -> Entry:
        """The model of that id. Raises `UnknownModelError`."""
        known = {entry.id: entry for entry in self.entries}
        if id not in known:
            raise UnknownModelError(f"{id[:100]}: no such model; there are {', '.join(known)}")
        return known[id]

    def items(self) -> Iterator[Item]:
        """Every model with its state; no file is read."""
        loaded = self.cache.loaded() if self.cache is not None else {}
        return (self._item(entry, loaded) for entry in self.entries)

    def item(self, id: str) -> Item:
        """One model with its state. Raises `UnknownModelError`."""
        loaded = self.cache.loaded() if self.cache is not None else {}
        return self._item(self.entry(id), loaded)

    def _item(self, entry: Entry, loaded: Mapping[Path, Mapping[str, int]]) -> Item:
        path, problem, begun = None, None, 0
        try:
            path = files.find(entry, self.folders)
        except MissingWeightsError as error:
            begun = arrived(entry, self.folders[0])
            problem = str(error) if entry.file.url is None else None
        except WeightsError as error:
            problem = str(error)
        return Item(
            entry,
            self._origin(entry),
            path,
            path.stat().st_size if path is not None else entry.file.size,
            begun,
            problem,
            loaded.get(path, {}) if path is not None else {},
        )

    def _origin(self, entry: Entry) -> Origin:
        if entry.id not in CATALOG:
            return Origin.HAND_PLACED
        return Origin.BUNDLED if entry.file.url is None else Origin.CATALOGUE

    def fetch(
        self,
        id: str,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        *,
        again: bool = False,
        accept_changed: bool = False,
    ) -> Path:
        """As `Fetcher.fetch`, a model of the catalogue; what is left out is as the fetcher has it.

        Raises `WeightsError`, of which `transfer.Stopped` is one.
        """
        fetcher = self._fetcher
        if progress is not None:
            fetcher = replace(fetcher, progress=progress)
        if should_stop is not None:
            fetcher = replace(fetcher, should_stop=should_stop)
        return fetcher.fetch(self.entry(id), again=again, accept_changed=accept_changed)

    def verify(self, id: str) -> Verified:
        """Reads the model's file whole: its hash, keys, shapes, and that its numbers are finite.

        Raises `WeightsError` if it is not here, or not what it was.
        """
        entry = self.entry(id)
        path = files.find(entry, self.folders)
        expected, whose = _expected_hash(entry, path)
        sha256 = files.sha256(path)
        if expected is not None and sha256 != expected:
            raise WeightsError(f"{path}: its sha256 is {sha256}, not {expected}, {whose}")
        checking.check_tensors(entry, reading.read(path).tensors)
        return Verified(path, sha256, whose)

    def delete(self, id: str) -> list[Path]:
        """Deletes a catalogued model's files from the folders, with all that has arrived of it.

        Returns what was deleted. Raises `WeightsError` for a bundled or a hand-placed model.
        """
        entry = self.entry(id)
        if self._origin(entry) is not Origin.CATALOGUE:
            what = "ships with this extension" if entry.id in CATALOG else "was put here by hand"
            raise WeightsError(f"{entry.id} {what}: only what can be fetched again is deleted here")
        self.unload(id)
        deleted = []
        for folder in self.folders:
            if folder.is_dir():
                deleted += replace(self._fetcher, folder=folder).remove(entry)
        return deleted

    def unload(self, id: str | None = None) -> None:
        """Takes a model out of memory, or all of them. Raises `UnknownModelError`."""
        if self.cache is None:
            return
        if id is None:
            self.cache.clear()
            return
        path = self.item(id).path
        if path is not None:
            self.cache.release(path)

    @property
    def _fetcher(self) -> Fetcher:
        return self.fetcher or Fetcher(self.folders[0])


def _expected_hash(entry: Entry, path: Path) -> tuple[str | None, str]:
    """The hash that the file must have, and where it is from; None if nothing tells."""
    if entry.file.sha256 is not None and path.name == entry.file.name:
        return entry.file.sha256, "as published"
    record = ledger.read(path.parent).get(entry.id)
    if record is not None and record.name == path.name:
        return record.sha256, "as when it was fetched"
    return None, ""
