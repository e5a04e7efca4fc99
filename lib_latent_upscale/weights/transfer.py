"""Downloading one file over HTTP, so that whatever happens on the way can be gone on from.

What has arrived lies in `PART`, and beside it `PART.json` says of which version of the file it
is a part: a later call asks for the rest of that version only (Range, If-Range; RFC 9110).
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from .errors import FetchError

Progress = Callable[[int, int | None], None]
"""Told the bytes that are there, and all there will be, or None where the server does not say."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a network, in seconds, and how often to try in vain."""

    connect: float = 10.0
    """For an answer to begin."""
    stall: float = 30.0
    """For the next 16 KB: less than half a KB a second is no download."""
    attempts: int = 3
    """Tries in a row that bring nothing new; each after the first waits longer."""
    pause: float = 0.5
    """Before the second try; doubled for each further one."""


_CHUNK = 1 << 14
_POLL = 0.1
_LONGEST_PAUSE = 30.0
_REDIRECTS = 8
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class Stopped(FetchError):
    """The caller's `should_stop` answered yes; what has arrived is kept."""


class _Broken(Exception):
    """A try that failed in a way that another may not."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def download(
    url: str,
    part: Path,
    sizes: range,
    *,
    patience: Patience = Patience(),
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Brings the whole of `url` into `part`, going on from what is in it already.

    sizes: the numbers of bytes that the file may have; another is refused before it is loaded.

    Raises `Stopped` within a fraction of a second of `should_stop`, `FetchError` when the server
    refuses, sends something else, or breaks off more often than `patience` allows.
    """
    if part.is_symlink():  # nothing here makes one
        discard(part)
    progress, should_stop = progress or (lambda *_: None), should_stop or (lambda: False)
    furthest, failures = _size(part), 0
    while True:
        try:
            _try_once(url, part, sizes, patience, progress, should_stop)
            return
        except _Broken as error:
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= patience.attempts:
                raise FetchError(str(error)) from error
            pause = max(error.pause, patience.pause * 2 ** max(failures - 1, 0))
            _sleep(min(pause, _LONGEST_PAUSE), should_stop)


def discard(part: Path) -> None:
    """Forgets what has arrived."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _try_once(
    url: str,
    part: Path,
    sizes: range,
    patience: Patience,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": "latent-upscale"}
    validator = _validator_of(url, part)
    have = _size(part) if validator else 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _Get(url, headers, patience, should_stop) as answer:
        if answer.status == 416 and have:  # nothing to add to what is there
            if _total(answer.headers) == have and have in sizes:
                progress(have, have)
                return
            discard(part)
            raise _Broken("the server no longer has the file of which a part is here")
        if answer.status in _BUSY:
            raise _Broken(f"the server answers {answer.status}", _retry_after(answer.headers))
        resumed = bool(have) and answer.status == 206
        if answer.status != 200 and not resumed:
            raise FetchError(f"the server answers {answer.status}")
        # Some know Range and not If-Range: they send the rest of whatever is there now.
        changed = _validator(answer.headers) not in (None, validator)
        if resumed and (changed or _start(answer.headers) != have):
            discard(part)
            raise _Broken("the server sent another part of the file than was asked for")
        have = have if resumed else 0
        total = _check_kind(answer.headers, sizes, resumed)
        if not resumed:
            discard(part)  # first: what it says of the part must never be older than the part
            said = {"url": url, "validator": _validator(answer.headers)}
            _note(part).write_text(json.dumps(said), encoding="utf-8")
        with part.open("ab") as file:
            for chunk in answer.chunks():
                have += len(chunk)
                if have > (total or sizes[-1]):
                    raise FetchError(f"the server sends more than {total or sizes[-1]} bytes")
                file.write(chunk)
                progress(have, total)
    if have < (total or sizes[0]):
        raise _Broken(f"the connection broke off at byte {have} of {total or sizes[0]}")


def _check_kind(headers: Mapping[str, str], sizes: range, resumed: bool) -> int | None:
    """The file's size by the server; raises `FetchError` for what is not the file."""
    if headers.get("content-type", "").lower().startswith("text/html"):
        raise FetchError("a web page came in place of the file; does a proxy want a login?")
    if headers.get("content-encoding", "identity") != "identity":
        raise FetchError("the server compresses the file, which was not asked for")
    total = _total(headers) if resumed else _number(headers.get("content-length", ""))
    if total is not None and total not in sizes:
        raise FetchError(f"the file there has {total} bytes; {sizes[0]} to {sizes[-1]} expected")
    return total


class _Get:
    """A GET in a thread of its own.

    So the caller can stop waiting at any moment; neither a name server nor a server that sends a
    byte a second can hold it. A thread that is left behind ends with its socket's time-out, or
    when 16 KB more have come.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        patience: Patience,
        should_stop: Callable[[], bool],
    ) -> None:
        self._url, self._sent, self._patience = url, headers, patience
        self._should_stop = should_stop
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._left = threading.Event()

    def __enter__(self) -> _Get:
        threading.Thread(target=self._run, name="latent-upscale-fetch", daemon=True).start()
        try:
            self.status, self.headers = self._next(self._patience.connect, "no answer")
        except BaseException:
            self._left.set()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()

    def chunks(self) -> Iterator[bytes]:
        """The body, in pieces; raises as `download` says, `_Broken` when it breaks off."""
        while True:
            chunk = self._next(self._patience.stall, "the connection stalled: no data")
            if chunk is None:
                return
            yield chunk

    def _next(self, seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            if self._should_stop():
                raise Stopped("stopped; what has arrived is kept for the next time")
            try:
                item = self._queue.get(timeout=_POLL)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise _Broken(f"{what} for {seconds:g} s") from None
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def _run(self) -> None:
        import requests  # not when this module is imported: most launches fetch nothing

        fatal = (
            requests.exceptions.TooManyRedirects,
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        )
        what = ""
        try:
            with requests.Session() as session:
                session.max_redirects = _REDIRECTS
                # Later than the one who waits gives up, with better words.
                timeout = (self._patience.connect + 1, self._patience.stall + 1)
                with session.get(
                    self._url, headers=dict(self._sent), stream=True, timeout=timeout
                ) as answer:
                    _check_encrypted(self._url, [one.url for one in (*answer.history, answer)])
                    headers = {name.lower(): value for name, value in answer.headers.items()}
                    self._put((answer.status_code, headers))
                    what = "the connection broke off: "
                    for chunk in _whole(answer.iter_content(_CHUNK), self._left.is_set):
                        if not self._put(chunk):
                            return
            self._put(None)
        except FetchError as error:
            self._put(error)
        except fatal as error:
            self._put(FetchError(str(error)))
        except Exception as error:  # of requests, urllib3 or the system
            self._put(_Broken(what + _reason(error)))

    def _put(self, item: Any) -> bool:
        """Hands an item over; False when nobody waits for it any more."""
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False


def _whole(pieces: Iterable[bytes], given_up: Callable[[], bool]) -> Iterator[bytes]:
    """Puts pieces together to chunks, the last one shorter: a piece may have as little as a byte,
    and `Patience.stall` is the time for a chunk."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= _CHUNK or given_up():
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _check_encrypted(url: str, way: Sequence[str]) -> None:
    """Raises `FetchError` where an https address leads over one that is not."""
    plain = [step for step in way if urlsplit(step).scheme != "https"]
    if urlsplit(url).scheme == "https" and plain:
        raise FetchError(f"it leads to {plain[0]}, which is not encrypted")


def _reason(error: BaseException) -> str:
    """The innermost cause: requests wraps it in several that say less."""
    for _ in range(8):
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = re.sub(r"^<[^>]*>: ", "", str(error))
    return f"{type(error).__name__}: {text}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator_of(url: str, part: Path) -> str:
    """What tells the version of which `part` is a part; empty if nothing does."""
    try:
        said = json.loads(_note(part).read_text(encoding="utf-8"))
        return str(said["validator"] or "") if said["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range takes: a strong entity tag, else the time of the last change."""
    tag = headers.get("etag", "")
    return tag if tag.startswith('"') else headers.get("last-modified")


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """First byte and size of the file, by Content-Range."""
    match = re.fullmatch(
        r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)", headers.get("content-range", "").strip()
    )
    first, total = match.groups("") if match else ("", "")
    return _number(first), _number(total)


def _number(text: str) -> int | None:
    """What a header's digits say; None for anything else, or for more than Python would read."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text.strip()) else None


def _start(headers: Mapping[str, str]) -> int | None:
    return _content_range(headers)[0]


def _total(headers: Mapping[str, str]) -> int | None:
    return _content_range(headers)[1]


def _retry_after(headers: Mapping[str, str]) -> float:
    return _number(headers.get("retry-after", "")) or 0


def _sleep(seconds: float, should_stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if should_stop():
            raise Stopped("stopped; what has arrived is kept for the next time")
        time.sleep(min(left, _POLL))
