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
    """Some windows. grids: the numbers of the grids that they are of; groups: those of them that
    have the same mask, in order."""

    grids: tuple[int, ...]
    groups: tuple[Group, ...]
    _rows: Tensor
    _shares: int

    def cut(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (tokens, channels of the grids), window by window."""
        rows = x.reshape(-1, x.shape[-1] // self._shares).index_select(0, self._rows)
        return rows.view(len(rows) // len(self.grids), -1)


@dataclass(frozen=True)
class Windows:
    """How to bring tokens (N, H, W, C) into the order of the windows of some grids, and back.

    Each grid has an equal share of the channels. groups: for each grid, its windows; those that
    have the same mask come in a row.
    """

    groups: tuple[tuple[Group, ...], ...]
    _cut: Tensor
    _join: Tensor

    def pieces(self, like: Tensor) -> Iterator[Piece]:
        """All windows: grid by grid, or of all grids at once where none has masks.

        like: (N, H, W, C), what is to be cut. A piece has as many windows as the limit allows
            (see `chunks`) for queries, keys, values and what is made of them.
        """
        shares, tokens = len(self.groups), like.shape[0] * like.shape[1] * like.shape[2]
        together = 1 if _have_masks(self.groups) else shares
        for start in range(0, shares, together):
            grids, groups = tuple(range(start, start + together)), self.groups[start]
            windows = sum(group.windows for group in groups)
            rows = together * tokens // windows
            each = rows * (like.shape[-1] // shares) * like.element_size()
            for first, last in pieces_of(windows, _HELD * each):
                cut = self._cut[start * tokens :][first * rows : last * rows]
                yield Piece(grids, _part_of(groups, first, last), cut, shares)

    def join(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """What was made of all pieces, (tokens, channels) each, as (N, H, W, C) of `like`."""
        x = torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]
        rows = x.view(len(self._join), -1).index_select(0, self._join)
        return rows.view(*like.shape[:3], -1)


def _have_masks(groups: Sequence[tuple[Group, ...]]) -> bool:
    """Whether windows differ in their masks: of several grids they do so at different places."""
    return any(len(one) > 1 for one in groups)


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
        # Viewed as rows of a grid's channels, the tokens have a row for each grid.
        rows = [order * len(grids) + grid for grid, order in enumerate(orders)]
        cut = torch.stack(rows, dim=0 if _have_masks(groups) else 1).flatten()
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
