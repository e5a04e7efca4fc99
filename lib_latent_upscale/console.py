"""Progress on a console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .weights.transfer import Progress


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar in bytes on stderr, from the first call of the progress function on."""
    from tqdm import tqdm

    shown: Any = None

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(
                desc=title, unit="B", unit_scale=True, unit_divisor=1000, total=total, initial=done
            )
        shown.total = total
        shown.update(done - shown.n)  # backwards where a server makes us start again

    try:
        yield progress
    finally:
        if shown is not None:
            shown.close()
