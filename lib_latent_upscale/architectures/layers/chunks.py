"""Working through large pictures in pieces, so that what is computed on the way stays small.

The result is that of the whole: pieces are rows of tokens, or windows, that do not see each
other. Pictures whose intermediate values fit the limit are one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEFAULT_LIMIT = 256 << 20
"""Bytes of intermediate values of a piece: enough that no latent of a usual size is cut."""

_local = threading.local()


@contextmanager
def chunk_limit(bytes_: int) -> Iterator[None]:
    """Another limit for what this thread computes in the `with` block."""
    before = limit()
    _local.limit = bytes_
    try:
        yield
    finally:
        _local.limit = before


@contextmanager
def before_pieces(call: Callable[[], None]) -> Iterator[None]:
    """`call` before every piece that this thread computes in the `with` block."""
    outer = getattr(_local, "before_piece", None)
    _local.before_piece = call
    try:
        yield
    finally:
        _local.before_piece = outer


def pieces_of(count: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of each piece of `count` things, each of which takes `bytes_each`."""
    most = max(1, limit() // max(1, bytes_each))
    before_piece: Callable[[], None] | None = getattr(_local, "before_piece", None)
    for first in range(0, count, most):
        if before_piece is not None:
            before_piece()
        yield first, min(first + most, count)


def by_rows(
    function: Callable[..., Tensor], x: Tensor, skip: Tensor | None, *, width: int, reach: int = 0
) -> Tensor:
    """`function(x, skip)` on tokens (N, H, W, C), worked out for some rows after others.

    width: channels of what `function` holds on the way.
    reach: how many rows up and down it looks; beyond the picture it must see zeros or nothing,
        as a padded convolution does.
    """
    n, height, columns = x.shape[:3]
    bytes_of_row = n * columns * width * x.element_size()
    results = []
    for first, last in pieces_of(height, bytes_of_row):
        if (first, last) == (0, height):
            return function(x, skip)
        above, below = min(reach, first), min(reach, height - last)
        rows = (slice(None), slice(first - above, last + below))
        part = function(x[rows].contiguous(), skip if skip is None else skip[rows].contiguous())
        results.append(part[:, above : above + last - first])
    return torch.cat(results, dim=1)


def limit() -> int:
    """The limit that holds in this thread, in bytes."""
    return int(getattr(_local, "limit", DEFAULT_LIMIT))
