"""Which tokens of a picture lie in which window: cutting into windows and back by gathers.

Channels may be in several parts with windows of their own: lying windows for one half of the
channels, standing ones for the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .chunks import pieces_of

_HELD = 5  # queries, keys, values, what is attended to, and that in another order


@dataclass(frozen=True)
class Grid:
    """Windows that tile a picture.

    window: (rows, columns) of tokens; height and width of the picture are multiples of them.
    shift: how far the windows lie down and right of the picture's corner; they go round its
        edges.
    masked: whether tokens of different edges are kept from seeing each other.
    """

    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    masked: bool = True

    @property
    def has_masks(self) -> bool:
        return self.masked and self.shift != (0, 0)


@dataclass(frozen=True)
class Group:
    """Windows that have the same mask: how many, and whether they are in the last row (1 or 0)
    and in the last column."""

    windows: int
    last_row: int = 0
    last_column: int = 0


@dataclass(frozen=True)
class Piece:
    """Some windows of a grid. groups: those of them that have the same mask, in order."""

    groups: tuple[Group, ...]
    _rows: Tensor
    _grids: int

    def cut(self, x: Tensor) -> Tensor:
        """(N, H, W, grids * C) to (tokens, C), window by window."""
        return x.reshape(-1, x.shape[-1] // self._grids).index_select(0, self._rows)


@dataclass(frozen=True)
class Windows:
    """How to bring tokens (N, H, W, C) into the order of the windows of some grids, and back.

    Each grid has an equal share of the channels. groups: for each grid, its windows; those that
    have the same mask come in a row.
    """

    groups: tuple[tuple[Group, ...], ...]
    _cut: Tensor
    _join: Tensor

    def pieces(self, like: Tensor) -> Iterator[tuple[int, Piece]]:
        """All windows, grid by grid, each piece with its grid's number.

        like: (N, H, W, C), what is to be cut. A piece has as many windows as the limit allows
            (see `chunks`) for queries, keys, values and what is made of them.
        """
        grids = len(self.groups)
        tokens = like.shape[0] * like.shape[1] * like.shape[2]
        for grid, groups in enumerate(self.groups):
            windows = sum(group.windows for group in groups)
            length = tokens // windows
            each = length * (like.shape[-1] // grids) * like.element_size()
            for first, last in pieces_of(windows, _HELD * each):
                start = grid * tokens
                rows = self._cut[start + first * length : start + last * length]
                yield grid, Piece(_part_of(groups, first, last), rows, grids)

    def join(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """What was made of all pieces, (tokens, C) each, as (N, H, W, grids * C) of `like`."""
        x = torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]
        return x.index_select(0, self._join).view(*like.shape[:3], -1)


def _part_of(groups: tuple[Group, ...], first: int, last: int) -> tuple[Group, ...]:
    """The groups of the windows from `first` to before `last`."""
    found, start = [], 0
    for group in groups:
        windows = min(last, start + group.windows) - max(first, start)
        if windows > 0:
            found.append(replace(group, windows=windows))
        start += group.windows
    return tuple(found)


def windows_of(x: Tensor, *grids: Grid) -> Windows:
    """The windows of tokens (N, H, W, C); worked out once for each size."""
    return _windows(x.shape[:3], grids, x.device)


def computed() -> int:
    """How many orders of windows have been worked out since the last `forget`."""
    return _windows.cache_info().misses


def forget() -> None:
    """Has all be worked out anew."""
    _windows.cache_clear()


@lru_cache(maxsize=16)
def _windows(size: tuple[int, int, int], grids: tuple[Grid, ...], device: torch.device) -> Windows:
    with torch.inference_mode(False):  # the indices serve calls that record gradients, too
        orders, groups = zip(*(_order(size, grid) for grid in grids))
        # Viewed as rows of C channels, the tokens have a row for each grid.
        cut = torch.stack(
            [order * len(grids) + grid for grid, order in enumerate(orders)]
        ).flatten()
        join = cut.argsort()
        return Windows(groups, cut.int().to(device), join.int().to(device))


def _order(size: tuple[int, int, int], grid: Grid) -> tuple[Tensor, tuple[Group, ...]]:
    """Token indices, window by window, and the groups of windows."""
    n, height, width = size
    (rows, columns), (down, right) = grid.window, grid.shift
    tokens = torch.arange(n * height * width).view(n, height, width)
    tokens = tokens.roll((-down, -right), (1, 2))
    tokens = tokens.view(n, height // rows, rows, width // columns, columns).transpose(2, 3)
    if not grid.has_masks:
        return tokens.flatten(), (Group(tokens[..., 0, 0].numel()),)
    order, groups = [], []
    for last_row, row in enumerate((slice(0, -1), slice(-1, None))):
        for last_column, column in enumerate((slice(0, -1), slice(-1, None))):
            group = tokens[:, row, column]
            if group.numel():
                order.append(group.flatten())
                groups.append(Group(group[..., 0, 0].numel(), last_row, last_column))
    return torch.cat(order), tuple(groups)
