"""What holds for a thread's calls in a `with` block only, however deep they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[None]:
    """`variable` is `value` in the `with` block, and then what it was. Threads have their own."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
