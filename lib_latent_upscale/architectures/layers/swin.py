"""The Swin transformer block (Liu et al., ICCV 2021) as SwinIR uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import masked_bias, window_attention
from .constants import ConstantCache
from .position import spread
from .tokens import Mlp


class WindowAttention(nn.Module):
    """Multi-head attention within square windows, shifted by half a window or not."""

    def __init__(self, dim: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = (window, window)
        self.shift = (window // 2, window // 2) if shifted else (0, 0)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self._constants = ConstantCache()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.proj(window_attention(qkv, self.window, self._bias(), self.shift))

    def _bias(self) -> Tensor:
        def compute() -> Tensor:
            bias = spread(table, self.window)
            return masked_bias(bias, self.window, self.shift) if self.shift != (0, 0) else bias

        table = self.relative_position_bias_table
        return self._constants.get("bias", (table,), compute)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a layer norm and with a skip.

    Tokens (N, H, W, C) to the same shape; H and W multiples of the window.
    """

    def __init__(self, dim: int, heads: int, window: int, hidden: int, *, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shifted=shifted)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def window_side(offsets: int) -> int:
    """The side of the square window whose bias table has that many rows."""
    return (round(offsets**0.5) + 1) // 2
