"""Downloads in the background, one after the other, that can be watched and stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from .shelf import Shelf
from .weights.errors import WeightsError
from .weights.transfer import Stopped


class State(Enum):
    """Where a download stands."""

    QUEUED = "queued"
    FETCHING = "fetching"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        return self not in (State.QUEUED, State.FETCHING)


@dataclass(frozen=True)
class Download:
    """A download as it stands."""

    id: str
    state: State = State.QUEUED
    done: int = 0
    """Bytes that are here."""
    total: int | None = None
    """Bytes in all, as far as they are known."""
    error: str | None = None
    """Why it failed."""


class Downloads:
    """The downloads of a process: those under way, and the last one of each model.

    shelf: gives the models and their folder, as they are when a download begins.
    """

    def __init__(self, shelf: Callable[[], Shelf]) -> None:
        self._shelf = shelf
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._known: dict[str, Download] = {}
        self._stopping: dict[str, threading.Event] = {}

    def start(self, id: str) -> Download:
        """Begins to fetch a model, unless that is under way; returns at once.

        Raises `UnknownModelError`. What goes wrong later is in the download's `error`.
        """
        entry = self._shelf().entry(id)
        with self._lock:
            known = self._known.get(id)
            if known is not None and not known.state.ended and not self._stopping[id].is_set():
                return known
            download = self._known[id] = Download(id, total=entry.file.size)
            stop = self._stopping[id] = threading.Event()
        # A daemon: the process ends without it, and the next download goes on from there.
        threading.Thread(target=self._run, args=(id, stop), daemon=True).start()
        return download

    def stop(self, id: str | None = None) -> None:
        """Stops a download, or all of them; what has arrived is kept for the next one."""
        with self._lock:
            for one, stop in self._stopping.items():
                if id in (None, one):
                    stop.set()

    def get(self, id: str) -> Download | None:
        """The last download of a model."""
        with self._lock:
            return self._known.get(id)

    def all(self) -> Sequence[Download]:
        """The last download of each model, in the order in which they began."""
        with self._lock:
            return tuple(self._known.values())

    def _run(self, id: str, stop: threading.Event) -> None:
        while not self._turn.acquire(timeout=0.1):
            if stop.is_set():
                self._note(id, stop, state=State.STOPPED)
                return
        try:
            self._note(id, stop, state=State.FETCHING)
            path = self._shelf().fetch(
                id,
                lambda done, total: self._note(id, stop, done=done, total=total),
                stop.is_set,
            )
            self._note(id, stop, state=State.DONE, done=path.stat().st_size)
        except Stopped:
            self._note(id, stop, state=State.STOPPED)
        except (WeightsError, OSError) as error:
            self._note(id, stop, state=State.FAILED, error=str(error))
        except BaseException as error:
            self._note(id, stop, state=State.FAILED, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._turn.release()

    def _note(self, id: str, stop: threading.Event, **what: object) -> None:
        with self._lock:
            if self._stopping[id] is stop:  # else a later download of the same model is known
                self._known[id] = replace(self._known[id], **what)  # type: ignore[arg-type]
