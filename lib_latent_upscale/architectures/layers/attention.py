"""Attention within windows, and attention between channels."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

_MASKED = -100.0  # what the published networks were trained with, in place of minus infinity


def window_attention(
    qkv: Tensor, window: tuple[int, int], bias: Tensor, shift: tuple[int, int] = (0, 0)
) -> Tensor:
    """Self-attention within windows that tile the picture (Swin, Liu et al., ICCV 2021).

    qkv: (N, H, W, 3, heads, dim), H and W multiples of the window's sides.
    bias: (heads, L, L) for L = tokens of a window, or (2, 2, heads, L, L) as from
        `masked_bias`, picked by whether a window is in the last row and the last column.
    shift: how far the windows lie down and right of the picture's corner; they go round its
        edges.
    Returns (N, H, W, heads * dim).
    """
    shifted = shift != (0, 0)
    if shifted:
        qkv = torch.roll(qkv, (-shift[0], -shift[1]), (1, 2))
    if bias.dim() == 3:
        out = _attend(qkv, window, bias)
    else:
        # Windows with the same mask are attended together: up to four rectangles.
        n, height, width = qkv.shape[:3]
        out = qkv.new_empty(n, height, width, qkv.shape[-2] * qkv.shape[-1])
        row, column = height - window[0], width - window[1]
        for last_row, rows in enumerate((slice(0, row), slice(row, None))):
            for last_column, columns in enumerate((slice(0, column), slice(column, None))):
                part = qkv[:, rows, columns]
                if part.numel():
                    out[:, rows, columns] = _attend(part, window, bias[last_row, last_column])
    return torch.roll(out, shift, (1, 2)) if shifted else out


def _attend(qkv: Tensor, window: tuple[int, int], bias: Tensor) -> Tensor:
    n, height, width = qkv.shape[:3]
    rows, columns = window
    q, k, v = rearrange(
        qkv,
        "n (nr r) (nc c) three heads dim -> three (n nr nc) heads (r c) dim",
        r=rows,
        c=columns,
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).unsqueeze(0))
    return rearrange(
        out,
        "(n nr nc) heads (r c) dim -> n (nr r) (nc c) (heads dim)",
        n=n,
        nr=height // rows,
        nc=width // columns,
        r=rows,
        c=columns,
    )


def masked_bias(bias: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Position bias (heads, L, L) with the masks of shifted windows added: (2, 2, heads, L, L).

    A window of the last row (first index 1) or column (second index 1) holds tokens from both
    edges of the picture; those of different edges must not see each other.
    """

    def sides(length: int, shifted: int, last: int) -> Tensor:
        side = torch.zeros(length, dtype=torch.int64)
        if last:
            side[length - shifted :] = 1
        return side

    masks = []
    for last_row in (0, 1):
        for last_column in (0, 1):
            rows = sides(window[0], shift[0], last_row)
            columns = sides(window[1], shift[1], last_column)
            region = (2 * rows[:, None] + columns[None, :]).flatten()
            masks.append((region[:, None] != region[None, :]) * _MASKED)
    mask = torch.stack(masks).unflatten(0, (2, 2)).unsqueeze(2)
    return bias + mask.to(bias.device, bias.dtype)


def channel_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Attention of channels to channels (XCiT, El-Nouby et al., 2021), over all positions.

    q, k, v: (N, H, W, C); temperature: (heads, 1, 1). Returns (N, H, W, C).
    """
    heads = temperature.shape[0]
    height, width = q.shape[1:3]
    q, k, v = (
        rearrange(x, "n h w (heads dim) -> n heads (h w) dim", heads=heads) for x in (q, k, v)
    )
    q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
    weights = (q.transpose(-2, -1) @ k * temperature).softmax(dim=-1)
    out = v @ weights.transpose(-2, -1)
    return rearrange(out, "n heads (h w) dim -> n h w (heads dim)", h=height, w=width)
