"""The resizer of Ttl/ComfyUi_NNLatentUpscale: residual blocks that know the factor, with a
bilinear resize of the features between two halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.chunks import pieces_of
from .layers.tokens import Conv2d, convolve, laid_as_tokens, to_picture, to_tokens
from .network import Network, Shapes

_GROUPS = 32


class AttentionBlock(nn.Module):
    """Single-head attention over all positions, with a skip; tokens (N, H, W, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, dim)
        self.q = Conv2d(dim, dim, 1)
        self.k = Conv2d(dim, dim, 1)
        self.v = Conv2d(dim, dim, 1)
        self.proj_out = Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        normed = _normed(self.norm, x.to(embedding.dtype))
        # (N, 1, H * W, C): fused attention takes no other, and the plain one would hold all
        # (H * W)^2 scores.
        q, k, v = (conv(normed).flatten(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        positions = q.shape[2]
        attended = torch.cat(
            [
                F.scaled_dot_product_attention(q[:, :, first:last], k, v)
                for first, last in pieces_of(positions, 4 * positions)
            ],
            dim=2,
        )
        return _onto(x, self.proj_out, attended.view_as(normed))


class ResidualBlock(nn.Module):
    """Two convolutions with a skip; the embedding of the factor is added between them."""

    def __init__(self, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(_GROUPS, dim), nn.SiLU(), Conv2d(dim, dim))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_dim, dim))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, dim),
            nn.SiLU(),
            nn.Identity(),  # the published dropout has this index
            Conv2d(dim, dim),
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        first, second = self.in_layers[2], self.out_layers[3]
        assert isinstance(first, Conv2d) and isinstance(second, Conv2d)
        hidden = F.silu(_normed(self.in_layers[0], x.to(embedding.dtype)))
        bias = first.bias + self.emb_layers(embedding).squeeze(0)
        hidden = convolve(hidden, first.weight, bias, packed=first.packed)
        return _onto(x, second, F.silu(_normed(self.out_layers[0], hidden)))


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    return to_tokens(norm(to_picture(x)))


def _onto(x: Tensor, conv: Conv2d, change: Tensor) -> Tensor:
    """x plus `conv(change)`. In half precision, blocks' results are summed up in float32."""
    if x.dtype == change.dtype:
        return conv(change, residual=x)
    return x + conv(change)


class Ttl(Network):
    """Any target size; trained for factors from 1 to 2 (`max_scale`).

    `in_blocks` and `out_blocks` say of each block in turn whether it attends.
    """

    architecture = "ttl"
    block_types = (AttentionBlock, ResidualBlock)
    signature = ("in_blocks.0.emb_layers.1.weight", "embed.0.weight")

    max_scale = 2.0
    scale = None

    def __init__(
        self,
        channels: int,
        dim: int,
        embedding_dim: int,
        in_blocks: tuple[bool, ...],
        out_blocks: tuple[bool, ...],
    ) -> None:
        super().__init__()

        def blocks(attends: tuple[bool, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                AttentionBlock(dim) if attend else ResidualBlock(dim, embedding_dim)
                for attend in attends
            )

        self.channels = channels
        self.conv_in = Conv2d(channels, dim)
        self.embed = nn.Sequential(
            nn.Linear(1, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )
        self.in_blocks = blocks(in_blocks)
        self.out_blocks = blocks(out_blocks)
        self.norm_out = nn.GroupNorm(_GROUPS, dim)
        self.conv_out = Conv2d(dim, channels)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        def attends(half: str) -> tuple[bool, ...]:
            return tuple(
                f"{half}.{index}.q.weight" in shapes for index in range(shapes.count(half))
            )

        return {
            "channels": shapes.size("conv_in.weight", 1),
            "dim": shapes.size("conv_in.weight"),
            "embedding_dim": shapes.size("embed.0.weight"),
            "in_blocks": attends("in_blocks"),
            "out_blocks": attends("out_blocks"),
        }

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            raise ValueError("this network has no factor of its own: give forward a size")
        if tuple(size) == tuple(x.shape[-2:]):
            return x
        embedding = self.embed(x.new_full((1, 1), size[1] / x.shape[-1] - 1))
        dtype = x.dtype
        x = self.conv_in(laid_as_tokens(x)).to(torch.promote_types(dtype, torch.float32))
        for block in self.in_blocks:
            x = block(x, embedding)
        x = to_tokens(F.interpolate(to_picture(x), size=size, mode="bilinear"))
        for block in self.out_blocks:
            x = block(x, embedding)
        x = self.conv_out(F.silu(_normed(self.norm_out, x.to(dtype))))
        return to_picture(x).contiguous()
