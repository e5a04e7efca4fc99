"""Attention in two rectangular windows at once, lying and standing, half the channels each
(CSWin, Dong et al., CVPR 2022; rectangles from CAT, Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import masked_bias, window_attention
from .constants import ConstantCache
from .position import DynamicPositionBias


class RectangleAttention(nn.Module):
    """One half: windows of (rows, columns) with a learnt position bias."""

    def __init__(
        self, dim: int, heads: int, window: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
        self.masked = masked
        self.pos = DynamicPositionBias(dim // 4 // 4, heads)
        self._constants = ConstantCache()

    def forward(self, qkv: Tensor) -> Tensor:
        """(N, H, W, 3, dim) to (N, H, W, dim)."""
        qkv = qkv.unflatten(-1, (self.heads, -1))
        return window_attention(qkv, self.window, self._bias(), self.shift)

    def _bias(self) -> Tensor:
        def compute() -> Tensor:
            bias = self.pos(self.window)
            if self.masked and self.shift != (0, 0):
                bias = masked_bias(bias, self.window, self.shift)
            return bias

        return self._constants.get("bias", tuple(self.pos.parameters()), compute)


class RectanglePair(nn.ModuleList):
    """Both halves: windows of `split_size` and, on the second half, of its transpose."""

    def __init__(
        self, dim: int, heads: int, split_size: tuple[int, int], *, shifted: bool, masked: bool
    ) -> None:
        super().__init__(
            RectangleAttention(dim // 2, heads // 2, window, shifted=shifted, masked=masked)
            for window in (split_size, split_size[::-1])
        )

    def forward(self, qkv: Tensor) -> Tensor:
        """(N, H, W, 3 * dim) to (N, H, W, dim); H, W multiples of both of the windows' sides."""
        halves = qkv.unflatten(-1, (3, 2, -1)).unbind(-2)
        return torch.cat([attn(half) for attn, half in zip(self, halves)], dim=-1)
