"""Work done by several threads, its results in the order of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def ordered_map(
    pool: Executor, function: Callable[[_Given], _Made], given: Iterable[_Given], ahead: int
) -> Iterator[_Made]:
    """function(one) for each one given, in order; up to `ahead` are worked on or wait to be taken.

    Executor.map would work through all at once, and keep all results in memory.
    """
    waiting: deque[Future[_Made]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(function, one))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
