"""Working through large pictures in pieces, so that what is computed on the way stays small.

The result is that of the whole: pieces are rows of tokens, or windows, that do not see each
other. Pictures whose intermediate values fit the limit are one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor

from .scoped import scoped

DEFAULT_LIMIT = 256 << 20
"""Bytes of intermediate values of a piece: enough that no latent of a usual size is cut."""

_limit: ContextVar[int] = ContextVar("limit", default=DEFAULT_LIMIT)
_before_piece: ContextVar[Callable[[], None] | None] = ContextVar("before_piece", default=None)


def chunk_limit(bytes_: int) -> AbstractContextManager[None]:
    """Another limit for what this thread computes in the `with` block."""
    return scoped(_limit, bytes_)


def before_pieces(call: Callable[[], None]) -> AbstractContextManager[None]:
    """`call` before every piece that this thread computes in the `with` block."""
    return scoped(_before_piece, call)


def pieces_of(count: int, bytes_each: int, at_most: int | None = None) -> Iterator[tuple[int, int]]:
    """First and last + 1 of each piece of `count` things, each of which takes `bytes_each`.

    at_most: bytes of a piece, where fewer than the limit are better.
    """
    bytes_ = limit() if at_most is None else min(limit(), at_most)
    most = max(1, bytes_ // max(1, bytes_each))
    before_piece = _before_piece.get()
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
    return _limit.get()
