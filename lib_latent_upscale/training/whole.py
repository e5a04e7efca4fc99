"""Files that appear whole or not at all: after a crash there is the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in the `with` block, which then takes the name `path`.

    Where the block fails, what it wrote is deleted, and what was at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
