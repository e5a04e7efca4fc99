"""Relative position biases of window attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def relative_position_index(window: tuple[int, int]) -> Tensor:
    """(L, L) for the L = rows * columns tokens of a window: which offset lies between two.

    Offsets are numbered row by row from (1 - rows, 1 - columns) on.
    """
    rows, columns = window
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    down = row[:, None] - row[None, :] + rows - 1
    right = column[:, None] - column[None, :] + columns - 1
    return down * (2 * columns - 1) + right


def relative_offsets(window: tuple[int, int]) -> Tensor:
    """((2 rows - 1) * (2 columns - 1), 2): the offsets that `relative_position_index` numbers."""
    rows, columns = window
    return torch.cartesian_prod(
        torch.arange(1 - rows, rows), torch.arange(1 - columns, columns)
    ).float()


def spread(per_offset: Tensor, window: tuple[int, int]) -> Tensor:
    """Biases by offset (offsets, heads) as biases by token pair, (heads, L, L)."""
    index = relative_position_index(window).to(per_offset.device)
    return per_offset[index].permute(2, 0, 1).contiguous()


class DynamicPositionBias(nn.Module):
    """A small network from offsets to biases (CrossFormer, Wang et al., ICLR 2022)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

        def step(out: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out))

        self.pos_proj = nn.Linear(2, dim)
        self.pos1 = step(dim)
        self.pos2 = step(dim)
        self.pos3 = step(heads)

    def forward(self, window: tuple[int, int]) -> Tensor:
        """The biases of a window of that many (rows, columns): (heads, L, L)."""
        weight = self.pos_proj.weight
        offsets = relative_offsets(window).to(weight.device, weight.dtype)
        return spread(self.pos3(self.pos2(self.pos1(self.pos_proj(offsets)))), window)
