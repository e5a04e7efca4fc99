"""3x3 convolutions on a CPU by a quarter of the multiplications.

Winograd's F(4x4, 3x3): a tile of 6x6 tokens gives 4x4 results by 36 products where a direct
convolution takes 144, and each of the 36 is, for all tiles and channels, one product of matrices.
(A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, whose three
matrices these are.) It rounds more than a direct one, by 2e-6 of the result for 5e-7 in float32;
too much for half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import chunks
from .constants import records_gradients

_SIDE, _TILE = 4, 6
"""Of a tile: results, and the tokens they are worked out of."""
_IN_CACHE = 16 << 20
"""Bytes on the way of a piece, which several operations go through in turn."""
_CHANNELS, _TOKENS = 128, 1024
"""Where it pays: with fewer, bringing the tiles there and back costs what it saves."""


def _on_both_axes(matrix: list[list[float]], dtype: torch.dtype) -> Tensor:
    """What is done to rows and columns, as one matrix for the places of a square, row by row."""
    one = torch.tensor(matrix, dtype=dtype, device="cpu")
    return torch.kron(one, one)


_OF_KERNEL = _on_both_axes(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    torch.float64,
)
_OF_TILE = _on_both_axes(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    torch.float32,
)
_OF_RESULT = _on_both_axes(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
    torch.float32,
)


def pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether tokens x (N, H, W, C) are to be convolved by `weight` (out, C, 3, 3) in this way."""
    return (
        weight.shape[1:] == (x.shape[-1], 3, 3)
        and min(weight.shape[:2]) >= _CHANNELS
        and x.shape[1] * x.shape[2] >= _TOKENS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not records_gradients(x, weight, bias)
    )


def transformed(weight: Tensor) -> Tensor:
    """A weight (out, in, 3, 3) as `convolve` takes it: (36, in, out), four times as large."""
    taps = weight.double().permute(2, 3, 1, 0).flatten(0, 1)
    places = torch.tensordot(_OF_KERNEL, taps, dims=1)
    return places.to(weight.dtype).contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A same-size convolution of tokens (N, H, W, C) by `transformed` weights (36, C, out)."""
    n, height, width, channels = x.shape
    rows, columns, out = -(-height // _SIDE), -(-width // _SIDE), weight.shape[2]
    below, right = _SIDE * rows - height, _SIDE * columns - width
    padded = F.pad(x, (0, 0, 1, 1 + right, 1, 1 + below))
    result = x.new_empty(n, rows, _SIDE, columns, _SIDE, out)
    bytes_of_row = n * columns * _TILE**2 * (2 * channels + out) * x.element_size()
    for first, last in chunks.pieces_of(rows, bytes_of_row, at_most=_IN_CACHE):
        lines = padded[:, _SIDE * first : _SIDE * (last - 1) + _TILE]
        tiles = lines.unfold(1, _TILE, _SIDE).unfold(2, _TILE, _SIDE).permute(4, 5, 0, 1, 2, 3)
        places = (_OF_TILE @ tiles.reshape(_TILE**2, -1)).view(_TILE**2, -1, channels)
        products = torch.bmm(places, weight).view(_TILE**2, -1)
        found = (_OF_RESULT @ products).view(_SIDE, _SIDE, n, last - first, columns, out)
        found = found.permute(2, 3, 0, 4, 1, 5)
        if bias is None:
            result[:, first:last] = found
        else:
            torch.add(found, bias, out=result[:, first:last])
    whole = result.view(n, _SIDE * rows, _SIDE * columns, out)
    return whole[:, :height, :width].contiguous()
