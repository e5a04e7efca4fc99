"""Running a network on overlapping tiles: the last resort where a latent does not fit."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

_OVERLAP = 16
"""Pixels of the input in which two tiles fade into each other."""


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, scale: float, tile: int) -> Tensor:
    """`network` on tiles of `tile` pixels of x (N, C, H, W), put together as one result.

    Neighbours overlap and fade into each other, so no seam shows. The result has the size that
    the network would give, and is its very result where it only looks as far as the overlap.
    """
    height, width = x.shape[-2:]
    if height <= tile and width <= tile:
        return network(x)
    # Where a tile begins, the result's pixels must begin too: at 1.25 every fourth.
    step = Fraction(scale).limit_denominator(8).denominator
    rows, columns = _tiles(height, tile, step), _tiles(width, tile, step)
    out_height, out_width = int(height * scale), int(width * scale)
    total = x.new_zeros(*x.shape[:-2], out_height, out_width, dtype=torch.float32)
    weight = total.new_zeros(out_height, out_width)
    for top, bottom in rows:
        for left, right in columns:
            part = network(x[..., top:bottom, left:right]).float()
            y, x_ = int(top * scale), int(left * scale)
            fade = _fade(part.shape[-2], scale, part)[:, None] * _fade(part.shape[-1], scale, part)
            area = (..., slice(y, y + part.shape[-2]), slice(x_, x_ + part.shape[-1]))
            total[area] += part * fade
            weight[area] += fade
    return (total / weight).to(x.dtype)


def _tiles(side: int, tile: int, step: int) -> list[tuple[int, int]]:
    """First pixel of each tile along a side, and the one after its last; evenly laid."""
    if side <= tile:
        return [(0, side)]
    count = -(-(side - _OVERLAP) // (tile - _OVERLAP))
    starts = [round(index * (side - tile) / (count - 1)) for index in range(count)]
    starts = [start // step * step for start in starts]
    # The last one reaches the end from wherever it may begin.
    return [*((start, start + tile) for start in starts[:-1]), (starts[-1], side)]


def _fade(length: int, scale: float, like: Tensor) -> Tensor:
    """Weights along a tile: rising from its edge to 1 where the overlap ends, never 0."""
    ramp = _OVERLAP * scale
    distance = torch.arange(length, device=like.device, dtype=torch.float32) + 0.5
    distance = torch.minimum(distance, length - distance)
    return (distance / ramp).clamp(max=1.0)
