"""Which tokens of a picture lie in which window: cutting into windows and back is one gather each.

Channels may be in several parts with windows of their own: lying windows for one half of the
channels, standing ones for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


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
class Windows:
    """How to bring tokens (N, H, W, C) into the order of the windows of some grids, and back.

    Each grid has an equal share of the channels. groups: for each grid, its windows; those that
    have the same mask come in a row.
    """

    groups: tuple[tuple[Group, ...], ...]
    _cut: Tensor
    _join: Tensor

    def cut(self, x: Tensor) -> Tensor:
        """(N, H, W, grids * C) to (grids, N * H * W, C)."""
        grids = len(self.groups)
        rows = x.reshape(-1, x.shape[-1] // grids).index_select(0, self._cut)
        return rows.unflatten(0, (grids, -1))

    def join(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """Pieces of (grids * N * H * W, C) to (N, H, W, grids * C); N, H and W of `like`."""
        x = torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]
        return x.index_select(0, self._join).view(*like.shape[:3], -1)


def windows_of(x: Tensor, *grids: Grid) -> Windows:
    """The windows of tokens (N, H, W, C); worked out once for each size."""
    return _windows(x.shape[:3], grids, x.device)


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
