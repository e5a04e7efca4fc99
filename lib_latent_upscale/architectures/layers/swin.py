"""The Swin transformer block (Liu et al., ICCV 2021) as SwinIR uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import head_width, masked_bias, widen_heads, window_attention
from .constants import ConstantCache
from .linear import Linear, linear
from .position import spread
from .tokens import Mlp
from .windows import Grid, windows_of


class WindowAttention(nn.Module):
    """Multi-head attention within square windows, shifted by half a window or not."""

    def __init__(self, dim: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        shift = window // 2 if shifted else 0
        self.grid = Grid((window, window), (shift, shift))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self._constants = ConstantCache()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        windows = windows_of(x, self.grid)
        dim = x.shape[-1] // self.relative_position_bias_table.shape[1]
        to_qkv, qkv_bias, to_out = self._weights(dim, head_width(dim, x))
        attended: list[Tensor] = []
        for piece in windows.pieces(x):
            qkv = linear(piece.cut(x), to_qkv, qkv_bias, packed=self.qkv.packed)
            q, k, v = qkv.chunk(3, dim=-1)
            attended += window_attention(q, k, v, piece.groups, self._bias(), dim**-0.5)
        joined = windows.join(attended, like=x)
        return linear(joined, to_out, self.proj.bias, residual=skip, packed=self.proj.packed)

    def _weights(self, dim: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias of `qkv`, and weight of `proj`, with heads of `dim` channels widened to
        `width` by zeros."""
        weights = self.qkv.weight, self.qkv.bias, self.proj.weight
        if width == dim:
            return weights

        def compute(*weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            to_qkv, bias, to_out = (
                widen_heads(x, dim, width) for x in (*weights[:2], weights[2].T)
            )
            return to_qkv, bias, to_out.T.contiguous()

        return self._constants.get(width, weights, compute)

    def _bias(self) -> Tensor:
        def compute(table: Tensor) -> Tensor:
            return masked_bias(spread(table, self.grid.window), self.grid)

        return self._constants.get("bias", (self.relative_position_bias_table,), compute)


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
        x = self.attn(self.norm1(x), skip=x)
        return self.mlp(self.norm2(x), skip=x)


def window_side(offsets: int) -> int:
    """The side of the square window whose bias table has that many rows."""
    return (round(offsets**0.5) + 1) // 2
