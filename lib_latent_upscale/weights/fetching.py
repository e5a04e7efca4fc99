"""Getting a model of the catalogue: fetched, checked, converted, and only then there.

Everything under way lies in the hidden folder `.fetching` within the folder of models, which
nothing loads from; a file gets its name by one rename when all checks have passed.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..catalog import Entry
from . import files, ledger
from .errors import FetchError, MissingWeightsError, WeightsError
from .transfer import Patience, Progress, Stopped, discard, download

_SPARE_BYTES = 64 << 20  # of the disk, for the host and its pictures
_BY_HAND = "by hand"  # in place of an address


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Fetcher:
    """How to fetch.

    folder: where to; it is made if it is not there.
    mirror: an address that is tried before the published ones. `{url}` in it stands for the
        published address and `{file}` for the file's name; without either the name is added.
    progress: told (bytes here, bytes in all or None).
    should_stop: asked ten times a second; on True `transfer.Stopped` is raised.
    release: called with a path before the file there is replaced, so that nothing holds it open:
        Windows cannot replace a file that is mapped into memory.
    """

    folder: Path
    mirror: str = ""
    patience: Patience = field(default_factory=Patience)
    progress: Progress | None = None
    should_stop: Callable[[], bool] = _never
    release: Callable[[Path], None] | None = None

    def fetch(self, entry: Entry, *, again: bool = False, accept_changed: bool = False) -> Path:
        """The entry's file in `folder`, fetched unless it is there.

        again: fetch it even so, and replace it.
        accept_changed: take a file whose hash is not that of the first download (only where
            none is published).

        Raises `FetchError` if it cannot be had, and `WeightsError` if what came is not it.
        """
        if entry.file.url is None:
            raise FetchError(f"{entry.id} ships with this extension; there is no address of it")
        with self._alone(entry):
            if not again:
                try:
                    return files.find(entry, [self.folder])
                except MissingWeightsError:
                    pass
            ledger.read(self.folder)  # if it is damaged, to know that now
            self._check_space(entry)
            reasons: dict[str, None] = {}  # as keys: two addresses may fail for one reason
            for url in self._addresses(entry):
                try:
                    return self._fetch_from(url, entry, accept_changed)
                except Stopped as error:
                    raise Stopped(f"{entry.id}: {error}") from error
                except FetchError as error:
                    reasons[f"{_host(url)}: {error}"] = None
                except WeightsError as error:
                    reasons[str(error)] = None
            raise FetchError(f"{entry.id} could not be fetched: " + "; ".join(reasons))

    def convert(self, entry: Entry, source: Path) -> Path:
        """A published pickle that was put into the folder by hand, as .safetensors.

        The pickle goes if its hash shows that it is the published one; without a hash to compare
        it stays beside the other file, as it may be a user's own. Raises `WeightsError` if it
        does not hold the entry's weights.
        """
        with self._alone(entry):
            kept = self.folder / entry.file.kept_name
            if kept.is_file():  # another process did it meanwhile
                return kept
            published = files.sha256(source) in (entry.file.sha256, self._first_sha256(entry))
            self._take(entry, source, _BY_HAND, accept_changed=False)
            if published:
                self._make_way(source)
                source.unlink()
            return kept

    def remove(self, entry: Entry) -> list[Path]:
        """Deletes the entry's files in `folder`, and what has arrived of a broken download.

        A link is deleted, and what it leads to stays. The hash of the first download stays
        known. Returns what was deleted. Raises `FetchError` for a model that ships with the
        extension, and if the folder's disk has something against it.
        """
        if entry.file.url is None:
            raise FetchError(f"{entry.id} was not downloaded, so it cannot be fetched again")
        if not self._under_way.is_dir() and not self._files(entry):
            return []  # a lock would leave something where there was nothing
        with self._alone(entry):
            discard(self._under_way / entry.file.name)
            found = self._files(entry)
            for path in found:
                self._make_way(path)
                path.unlink()
            return found

    def _files(self, entry: Entry) -> list[Path]:
        """The entry's files and links in `folder`."""
        paths = [self.folder / name for name in entry.file.local_names]
        return [path for path in paths if os.path.lexists(path) and not path.is_dir()]

    def _addresses(self, entry: Entry) -> Sequence[str]:
        file = entry.file
        published = [url for url in (file.url, file.fallback_url) if url]
        if not self.mirror:
            return published
        mirror = self.mirror
        if "{url}" not in mirror and "{file}" not in mirror:
            mirror = f"{mirror.rstrip('/')}/{{file}}"
        mirrored = [
            mirror.replace("{url}", url).replace("{file}", url.rpartition("/")[2])
            for url in published
        ]
        return tuple(dict.fromkeys([*mirrored, *published]))

    def _fetch_from(self, url: str, entry: Entry, accept_changed: bool) -> Path:
        part = self._under_way / entry.file.name
        resumed = part.exists()
        download(
            url,
            part,
            entry.file.sizes,
            patience=self.patience,
            progress=self.progress,
            should_stop=self.should_stop,
        )
        refusal = ""
        try:
            kept = self._take(entry, part, url, accept_changed)
        except WeightsError as error:
            # Not the error itself: it holds what was read, and so the file, which Windows then
            # does not let go.
            refusal = str(error)
        discard(part)
        if not refusal:
            return kept
        if not resumed:
            raise WeightsError(refusal)
        # What was there before may not have been what it seemed: once more from the start.
        return self._fetch_from(url, entry, accept_changed)

    def _take(self, entry: Entry, source: Path, url: str, accept_changed: bool) -> Path:
        """Checks a published file, and puts it, converted if need be, under its name."""
        from filelock import FileLock
        from safetensors import SafetensorError

        from . import checking, converting  # they load torch, which takes seconds

        first = None if accept_changed else self._first_sha256(entry)
        checking.check_source(entry, source, first)
        source_sha256 = files.sha256(source)
        kept = self.folder / entry.file.kept_name
        bench = self._under_way / entry.id  # with what a process that was killed left on it
        shutil.rmtree(bench, ignore_errors=True)
        ready = bench / kept.name
        try:
            bench.mkdir(exist_ok=True)
            converting.convert(entry, source, ready, source_sha256)
            sha256 = files.sha256(ready)
            record = ledger.Record(url, source_sha256, kept.name, sha256)
            self._make_way(kept)
            # Others may be fetching other entries, and the ledger is written as a whole.
            with FileLock(str(self._under_way / f"{ledger.FILE_NAME}.lock")):
                _replace(ready, kept)
                ledger.write(self.folder, entry.id, record)
        except SafetensorError as error:  # its own way to say that something cannot be written
            raise OSError(str(error)) from error
        finally:
            shutil.rmtree(bench, ignore_errors=True)
        return kept

    def _first_sha256(self, entry: Entry) -> str | None:
        """The hash of the entry's first good download; None if there was none."""
        known = ledger.read(self.folder).get(entry.id)
        return known.source_sha256 if known is not None and known.url != _BY_HAND else None

    def _check_space(self, entry: Entry) -> None:
        """Raises `FetchError` unless the disk can take the download and its conversion."""
        needed = 2 * entry.file.size - arrived(entry, self.folder) + _SPARE_BYTES
        free = shutil.disk_usage(self._under_way).free
        if free < needed:
            raise FetchError(
                f"{entry.id} needs {needed / 1e6:.0f} MB of disk space for a moment, and "
                f"{self.folder} has {free / 1e6:.0f} MB left. Make some room, or set another "
                "folder of models."
            )

    def _make_way(self, path: Path) -> None:
        if self.release is not None:
            self.release(path)

    @property
    def _under_way(self) -> Path:
        return under_way(self.folder)

    @contextmanager
    def _alone(self, entry: Entry) -> Iterator[None]:
        """Waits until no other thread or process works on this entry in this folder.

        What the folder's disk then has against the work becomes a `FetchError`.
        """
        from filelock import FileLock, Timeout  # torch needs it, so every WebUI has it

        try:
            self._under_way.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self._under_way / f"{entry.id}.lock"))
            while True:
                try:
                    lock.acquire(timeout=0.1)
                    break
                except Timeout:
                    if self.should_stop():
                        raise Stopped(f"{entry.id}: stopped while another fetched it") from None
            try:
                yield
            finally:
                lock.release()
        except (OSError, NotImplementedError) as error:  # of the disk; no other address helps
            raise FetchError(f"{self.folder} cannot be written to: {error}") from error


def obtain(entry: Entry, folders: Sequence[Path], fetcher: Fetcher | None) -> Path:
    """The file of an entry: found in one of the folders, or else fetched by `fetcher`.

    A published pickle in the fetcher's folder is converted on the way. Raises `WeightsError`.
    """
    try:
        path = files.find(entry, folders)
    except MissingWeightsError:
        if fetcher is None or entry.file.url is None:
            raise
        return fetcher.fetch(entry)
    published = entry.file.url is not None and path.suffix.lower() in files.PICKLES
    if fetcher is None or not published or path.parent != fetcher.folder:
        return path
    try:
        return fetcher.convert(entry, path)
    except Stopped:
        raise
    except WeightsError:
        return path  # someone's own under a published name, or a folder that is read-only


def _host(url: str) -> str:
    """The host of an address, or all of one that is none: a mirror's is what the user typed."""
    return url.partition("://")[2].partition("/")[0] or url


def _replace(ready: Path, kept: Path) -> None:
    """Renames; on Windows a file that is still mapped somewhere needs a moment."""
    for attempt in range(5):
        try:
            os.replace(ready, kept)
            return
        except PermissionError:
            if attempt == 4:
                raise
            gc.collect()
            time.sleep(0.2)


def under_way(folder: Path) -> Path:
    """The folder, within one of models, that nothing is loaded from."""
    return folder / ".fetching"


def arrived(entry: Entry, folder: Path) -> int:
    """The bytes of a download that has begun and not ended; 0 if there is none."""
    part = under_way(folder) / entry.file.name
    return part.stat().st_size if part.is_file() else 0


__all__ = ["Fetcher", "Patience", "Progress", "Stopped", "arrived", "obtain", "under_way"]
