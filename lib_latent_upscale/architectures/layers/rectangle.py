"""Attention in two rectangular windows at once, lying and standing, half the channels each
(CSWin, Dong et al., CVPR 2022; rectangles from CAT, Chen et al., NeurIPS 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import masked_bias, window_attention
from .constants import ConstantCache
from .position import DynamicPositionBias
from .windows import Grid, Group, windows_of


class RectangleAttention(nn.Module):
    """One half: windows of (rows, columns) with a learnt position bias."""

    def __init__(
        self, dim: int, heads: int, window: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        super().__init__()
        self.grid = Grid(window, (window[0] // 2, window[1] // 2) if shifted else (0, 0), masked)
        self.pos = DynamicPositionBias(dim // 4 // 4, heads)
        self._constants = ConstantCache()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...]) -> list[Tensor]:
        """As `window_attention`, with this half's bias."""
        return window_attention(q, k, v, groups, self._bias())

    def _bias(self) -> Tensor:
        def compute() -> Tensor:
            return masked_bias(self.pos(self.grid.window), self.grid)

        return self._constants.get("bias", tuple(self.pos.parameters()), compute)


class RectanglePair(nn.ModuleList):
    """Both halves: windows of `split_size` and, on the second half, of its transpose."""

    def __init__(
        self, dim: int, heads: int, split_size: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        halves = [
            RectangleAttention(dim // 2, heads // 2, window, shifted=shifted, masked=masked)
            for window in (split_size, split_size[::-1])
        ]
        super().__init__(halves)
        self._grids = tuple(half.grid for half in halves)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (N, H, W, dim), H and W multiples of both of the windows' sides. As v."""
        windows = windows_of(v, *self._grids)
        attended: list[Tensor] = []
        for half, piece in windows.pieces(v):
            attended += self[half](piece.cut(q), piece.cut(k), piece.cut(v), piece.groups)
        return windows.join(attended, like=v)
