"""Attention within windows, and attention between channels."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import linear
from .windows import Grid, Group

_MASKED = -100.0  # what the published networks were trained with, in place of minus infinity
_FUSED = 8
_SCORES_AT_ONCE = 2**20  # as many as stay in a CPU's cache between the products


def head_width(dim: int, like: Tensor) -> int:
    """How many channels `window_attention` is fastest with for heads of `dim`: the rest zeros.

    like: of the device and the precision in which it attends.
    """
    if dim > 32 and _in_cpus_half(like) and _has_tiles():
        return -(-dim // 16) * 16
    return dim + _short_of_fused(dim, like)


def widen_heads(x: Tensor, dim: int, width: int) -> Tensor:
    """Heads of `dim` channels each, on the first axis, with zeros up to `width` channels."""
    heads = x.unflatten(0, (-1, dim))
    zeros = heads.new_zeros(len(heads), width - dim, *heads.shape[2:])
    return torch.cat((heads, zeros), dim=1).flatten(0, 1)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: tuple[Group, ...],
    bias: Tensor,
    scale: float | None = None,
) -> list[Tensor]:
    """Self-attention within windows (Swin, Liu et al., ICCV 2021).

    q, k, v: (tokens, heads * dim), window by window.
    groups: the groups of windows that have the same mask, in order.
    bias: from `masked_bias`, for windows of L tokens.
    scale: of the products; by default that for heads of `dim` channels.
    Returns (tokens, heads * dim) in order, in several pieces.
    """
    heads, length = bias.shape[-3:-1]
    q, k, v = (
        x.unflatten(0, (-1, length)).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)
    )
    scale = scale or q.shape[-1] ** -0.5
    attend, at_once = _attend, len(q)
    if _in_cpus_half(q) and not _has_tiles():
        attend, at_once = _attend_by_products, max(1, _SCORES_AT_ONCE // (heads * length**2))
    attended, start = [], 0
    for group in groups:
        group_bias = bias[group.last_row, group.last_column] if bias.dim() == 5 else bias
        stop = start + group.windows
        for first in range(start, stop, at_once):
            part = slice(first, min(first + at_once, stop))
            out = attend(q[part], k[part], v[part], group_bias, scale)
            attended.append(out.transpose(1, 2).reshape(-1, v.shape[1] * v.shape[3]))
        start = stop
    return attended


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(windows, heads, L, dim) to the same shape; bias (heads, L, L)."""
    mask, dim = bias.to(q.dtype).unsqueeze(0), q.shape[-1]
    if short := _short_of_fused(dim, q):
        q, k, v = (F.pad(x, (0, short)) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out[..., :dim]


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """As `_attend`. Without tiles, a CPU's fused kernel gains nothing from bfloat16; its products
    do."""
    windows = len(q)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).unflatten(0, (windows, -1))
    weights = torch.add(bias, scores, alpha=scale).softmax(dim=-1).flatten(0, 1)
    return torch.bmm(weights, v).unflatten(0, (windows, -1))


def _short_of_fused(dim: int, like: Tensor) -> int:
    """How many channels heads of `dim` lack for a GPU's fused attention with a bias.

    CUDA's and ROCm's takes multiples of eight. Heads of CRAFT have 30, of DAT 45, of DRCT 30 to
    122: for those torch else computes in steps, with a matrix of all scores in memory.
    """
    return -dim % _FUSED if _is_gpu(like) else 0


def _is_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _in_cpus_half(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


@cache
def _has_tiles() -> bool:
    """Whether this CPU has a unit for products in bfloat16 (AMX), and torch knows of it."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return known is not None and bool(known())


def masked_bias(bias: Tensor, grid: Grid) -> Tensor:
    """Position bias (heads, L, L) with the masks of the grid's groups, if it has any.

    Returns (2, 2, heads, L, L): a window of the last row (first index 1) or column (second
    index 1) holds tokens from both edges of the picture; those of different edges must not see
    each other. Without masks, the bias as it is.
    """
    if not grid.has_masks:
        return bias

    def sides(length: int, shifted: int, last: int) -> Tensor:
        side = torch.zeros(length, dtype=torch.int64)
        if last:
            side[length - shifted :] = 1
        return side

    masks = []
    for last_row in (0, 1):
        for last_column in (0, 1):
            rows = sides(grid.window[0], grid.shift[0], last_row)
            columns = sides(grid.window[1], grid.shift[1], last_column)
            region = (2 * rows[:, None] + columns[None, :]).flatten()
            masks.append((region[:, None] != region[None, :]) * _MASKED)
    mask = torch.stack(masks).unflatten(0, (2, 2)).unsqueeze(2)
    return bias + mask.to(bias.device, bias.dtype)


def channel_mix(weights: Tensor, v: Tensor, onto: Tensor | None = None) -> Tensor:
    """Attention of channels to channels (XCiT, El-Nouby et al., 2021), over all positions.

    weights: from `channel_weights`; v: (N, H, W, C). Returns (N, H, W, C); added to `onto`, in
    place, if that is given.
    """
    mixed = torch.zeros_like(v) if onto is None else onto
    for index, by in enumerate(weights.transpose(-2, -1)):
        into, one = (x[index].view(-1, *by.shape[:2]).transpose(0, 1) for x in (mixed, v))
        into.baddbmm_(one, by)
    return mixed


def projected_channel_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, projection: Tensor, skip: Tensor | None
) -> Tensor:
    """`channel_mix` of `v` times `projection` (out, C), plus `skip` (N, H, W, out).

    At each position both are linear: one layer does it, with weights of its own for each picture.
    """
    attended = []
    for index, heads in enumerate(channel_weights(q, k, temperature)):
        one = slice(index, index + 1)
        weight = projection @ torch.block_diag(*heads)
        attended.append(linear(v[one], weight, residual=None if skip is None else skip[one]))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def channel_weights(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """How much each channel of a head takes of each other: (N, heads, dim, dim).

    q, k: (N, H, W, C); temperature: (heads, 1, 1). The softmax of the cosines between channels.
    They are divided by the channels' lengths after the product, where they are few, not before it.
    """
    dtype, precise = q.dtype, torch.promote_types(q.dtype, torch.float32)
    if dtype == torch.float16:
        q, k = q.float(), k.float()  # sums over a picture are too large for it
    heads = (len(temperature), -1)
    # Clamped before the root, whose gradient at zero is none. A sum in float32 of half precision
    # converts all of it first, on a CPU: that over one axis goes before it.
    q_length, k_length = (
        x.square().sum(dim=1).sum(dim=1, dtype=precise).unflatten(1, heads).clamp_min(1e-24).sqrt()
        for x in (q, k)
    )
    q, k = (x.flatten(1, 2).unflatten(-1, heads) for x in (q, k))
    products = q.permute(0, 2, 3, 1) @ k.transpose(1, 2)
    cosines = products.to(precise) / (q_length.unsqueeze(-1) * k_length.unsqueeze(-2))
    return (cosines * temperature).softmax(dim=-1).to(dtype)
