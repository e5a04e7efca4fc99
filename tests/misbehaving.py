"""A web server on the loopback that misbehaves as told."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Manner:
    """How the server answers one request. The default: well."""

    status: int | None = None
    """In place of 200 or 206."""
    cut: int | None = None
    """Close the connection after this many bytes of the body."""
    stall: int | None = None
    """Stop sending after this many bytes, and keep the connection."""
    trickle: float | None = None
    """Seconds before each `block` of the body."""
    block: int = 1
    """Bytes that a trickle sends at once."""
    chunked: bool = False
    """Send with Transfer-Encoding: chunked, each `block` of a trickle as one chunk."""
    ranges: bool = True
    """Know Range and If-Range; else send all, always."""
    if_range: bool = True
    """Know If-Range; else send a part of whatever the file is now."""
    length: int | None = None
    """A wrong Content-Length; -1 for none at all."""
    content_range: str | None = None
    """A wrong Content-Range."""
    redirect: str | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    """More headers, or others; None leaves one out."""
    body: bytes | None = None
    """In place of the file."""
    becomes: bytes | None = None
    """What the file is from this request on."""
    delay: float = 0.0
    """Seconds before the answer begins."""


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]


class MisbehavingServer:
    """Serves `files` by path; for each request takes the next of the path's `manners`, the last
    one for ever. `asked` has every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.manners: dict[str, list[Manner]] = {}
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, path: str, content: bytes, *manners: Manner) -> str:
        """Puts a file there, and how requests for it are answered; returns its address."""
        self.files[path] = content
        self.manners[path] = list(manners) or [Manner()]
        return self.base + path

    def asked_for(self, path: str) -> list[Asked]:
        return [one for one in self.asked if one.path == path]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def next_manner(self, path: str) -> Manner:
        with self._lock:
            manners = self.manners.get(path, [Manner()])
            return manners.pop(0) if len(manners) > 1 else manners[0]


@contextmanager
def misbehaving_server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    owner: MisbehavingServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.owner
        owner.asked.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}))
        manner = owner.next_manner(self.path)
        if manner.becomes is not None:
            owner.files[self.path] = manner.becomes
        content = owner.files.get(self.path)
        if manner.delay:
            owner.closing.wait(manner.delay)
        if content is None:
            self._answer(404, b"nothing here", {}, manner)
            return
        if manner.redirect is not None:
            self._answer(302, b"", {"Location": manner.redirect}, manner)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        said = {"ETag": tag, "Content-Type": "application/octet-stream", **manner.headers}
        headers = {name: value for name, value in said.items() if value is not None}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        known = [headers.get(name) for name in ("ETag", "Last-Modified")]
        condition = self.headers.get("If-Range") if manner.if_range else None
        same = condition is None or (condition in known and not condition.startswith("W/"))
        if wanted and manner.ranges and same and manner.status is None:
            first = int(wanted[1])
            if first >= len(content):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"}, manner)
                return
            whole = f"bytes {first}-{len(content) - 1}/{len(content)}"
            headers["Content-Range"] = manner.content_range or whole
            self._answer(206, content[first:], headers, manner)
            return
        self._answer(200, content if manner.body is None else manner.body, headers, manner)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], manner: Manner) -> None:
        self.send_response(manner.status or status)
        for name, value in headers.items():
            self.send_header(name, value)
        length = len(body) if manner.length is None else manner.length
        if manner.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length >= 0:
            self.send_header("Content-Length", str(length))
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has left
            self._send(body, manner)

    def _send(self, body: bytes, manner: Manner) -> None:
        end = min(limit for limit in (manner.cut, manner.stall, len(body)) if limit is not None)
        block = len(body) if manner.trickle is None else manner.block
        for first in range(0, end, block or 1):
            if self.owner.closing.wait(manner.trickle or 0):
                return
            self._write(body[first : min(first + block, end)], manner)
        if manner.stall is not None:
            self.owner.closing.wait(60)
        elif manner.chunked and end == len(body):
            self._write(b"", manner)

    def _write(self, block: bytes, manner: Manner) -> None:
        framed = b"%x\r\n%b\r\n" % (len(block), block) if manner.chunked else block
        self.wfile.write(framed)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


__all__ = ["Asked", "Manner", "MisbehavingServer", "misbehaving_server"]
