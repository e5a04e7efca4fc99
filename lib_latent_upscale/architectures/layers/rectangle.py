"""Attention in two rectangular windows at once, lying and standing, half the channels each
(CSWin, Dong et al., CVPR 2022; rectangles from CAT, Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import masked_bias, window_attention
from .constants import ConstantCache
from .position import DynamicPositionBias
from .windows import Grid, windows_of


class RectangleBias(nn.Module):
    """One half's windows of (rows, columns), and their learnt position bias."""

    def __init__(
        self, dim: int, heads: int, window: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        super().__init__()
        self.grid = Grid(window, (window[0] // 2, window[1] // 2) if shifted else (0, 0), masked)
        self.pos = DynamicPositionBias(dim // 4 // 4, heads)

    def forward(self) -> Tensor:
        """The position bias with the windows' masks, as `masked_bias`."""
        return masked_bias(self.pos(self.grid.window), self.grid)


class RectanglePair(nn.ModuleList):
    """Both halves: windows of `split_size` and, on the second half, of its transpose."""

    def __init__(
        self, dim: int, heads: int, split_size: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        halves = [
            RectangleBias(dim // 2, heads // 2, window, shifted=shifted, masked=masked)
            for window in (split_size, split_size[::-1])
        ]
        super().__init__(halves)
        self._grids = tuple(half.grid for half in halves)
        self._constants = ConstantCache()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (N, H, W, dim), H and W multiples of both of the windows' sides. As v."""
        windows = windows_of(v, *self._grids)
        attended: list[Tensor] = []
        for piece in windows.pieces(v):
            bias = self._bias(piece.grids)
            attended += window_attention(
                piece.cut(q), piece.cut(k), piece.cut(v), piece.groups, bias
            )
        return windows.join(attended, like=v)

    def _bias(self, grids: tuple[int, ...]) -> Tensor:
        """Of the heads of those halves, one half's after the other's."""
        halves = [self[grid] for grid in grids]
        weights = tuple(weight for half in halves for weight in half.parameters())

        def compute(*_: Tensor) -> Tensor:
            return torch.cat([half() for half in halves], dim=-3)

        return self._constants.get(grids, weights, compute)
