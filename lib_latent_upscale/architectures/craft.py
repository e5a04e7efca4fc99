"""CRAFT: Cross-Refinement Adaptive Feature modulation Transformer (Li et al., ICCV 2023).

Each step runs two branches on the same features, window attention for low and convolutions
with a max pool for high frequencies, and lets the high ones query the low ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.attention import projected_channel_attention
from .layers.chunks import by_rows
from .layers.linear import Linear
from .layers.rectangle import RectanglePair
from .layers.restoration import RestorationNetwork
from .layers.tokens import (
    Conv2d,
    DepthwiseConv2d,
    Mlp,
    add_branches,
    convolve,
    to_picture,
    to_tokens,
)
from .network import Shapes, upscale_factor


class ShiftedRectangleBlock(nn.Module):
    """Window attention with a depthwise convolution of the values beside it, then an MLP."""

    def __init__(
        self, dim: int, heads: int, hidden: int, split_size: tuple[int, int], *, shifted: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.get_v = DepthwiseConv2d(dim)
        # The published code shifts round the edge without a mask, and was trained so.
        self.attns = RectanglePair(dim, heads, split_size, shifted=shifted, masked=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return add_branches(x, self.qkv.weight.dtype, self._attend, self._refine)

    def _attend(self, x: Tensor, skip: Tensor | None) -> Tensor:
        q, k, v = self.qkv.parts(self.norm1(x), 3)
        return self.proj(self.attns(q, k, v) + self.get_v(v), residual=skip)

    def _refine(self, x: Tensor, skip: Tensor | None) -> Tensor:
        return self.mlp(self.norm2(x), skip)


class HighFrequencyBlock(nn.Module):
    """Half of the channels through a convolution, half through a max pool."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.last_fc = Conv2d(dim, dim, 1)
        self.fc = Conv2d(dim // 2, dim // 2, 1)
        self.conv = Conv2d(dim // 2, dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.fc.weight.dtype)
        local, high = (half.contiguous() for half in x.chunk(2, dim=-1))
        high = to_tokens(F.max_pool2d(to_picture(high), 3, 1, 1))
        halves = (self.conv(local, activation="gelu"), self.fc(high, activation="gelu"))
        return self.last_fc(torch.cat(halves, dim=-1), residual=x)


class FusionAttention(nn.Module):
    """Attention between channels; queries from the high, keys and values from the low branch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = Conv2d(dim, dim, 1, bias=False)
        self.q_dwconv = DepthwiseConv2d(dim, bias=False)
        self.kv = Conv2d(dim, 2 * dim, 1, bias=False)
        self.kv_dwconv = DepthwiseConv2d(2 * dim, bias=False)
        self.project_out = Conv2d(dim, dim, 1, bias=False)

    def forward(self, low: Tensor, high: Tensor, skip: Tensor | None) -> Tensor:
        q = self.q_dwconv(self.q(high))
        k, v = self.kv_dwconv(self.kv(low)).chunk(2, dim=-1)
        projection = self.project_out.weight.flatten(1)
        return projected_channel_attention(q, k, v, self.temperature, projection, skip)


class GatedFeedForward(nn.Module):
    """Half of the hidden channels, through GELU, gate the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.project_in = Conv2d(dim, 2 * hidden, 1, bias=False)
        self.dwconv = DepthwiseConv2d(2 * hidden, bias=False)
        self.project_out = Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        width = 2 * self.project_in.out_channels
        return by_rows(self._forward, x, skip, width=width, reach=1)

    def _forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        # Each half by itself: the GELU and the gating are then in the convolutions' kernels.
        (to_gate, to_kept), (at_gate, at_kept) = (
            conv.weight.chunk(2) for conv in (self.project_in, self.dwconv)
        )
        inner, at = self.project_in.packed, self.dwconv.packed
        gate = convolve(convolve(x, to_gate, None, packed=inner), at_gate, None, "gelu", packed=at)
        kept = convolve(x, to_kept, None, packed=inner)
        kept = convolve(kept, at_kept, None, gate=gate, packed=at)
        return self.project_out(kept, residual=skip)


class FusionBlock(nn.Module):
    """Brings the two branches together: attention, then a gated feed-forward network."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"body": nn.LayerNorm(dim)})
        self.attn = FusionAttention(dim, heads)
        self.norm2 = nn.ModuleDict({"body": nn.LayerNorm(dim)})
        self.ffn = GatedFeedForward(dim, hidden)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        def attend(x: Tensor, skip: Tensor | None) -> Tensor:
            return self.attn(self.norm1["body"](x), high, skip)

        def refine(x: Tensor, skip: Tensor | None) -> Tensor:
            return self.ffn(self.norm2["body"](x), skip)

        return add_branches(low, high.dtype, attend, refine)


class Refinement(nn.Module):
    """`depth` steps of both branches and their fusion."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        fusion_hidden: int,
        split_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.srwa_blocks = nn.ModuleList(
            ShiftedRectangleBlock(dim, heads, hidden, split_size, shifted=index % 2 == 1)
            for index in range(2 * depth)
        )
        self.hfer_blocks = nn.ModuleList(HighFrequencyBlock(dim) for _ in range(depth))
        self.hf_blocks = nn.ModuleList(FusionBlock(dim, heads, fusion_hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for step, (refine, fuse) in enumerate(zip(self.hfer_blocks, self.hf_blocks)):
            low = self.srwa_blocks[2 * step + 1](self.srwa_blocks[2 * step](x))
            x = fuse(low, refine(x))
        return x


class Group(nn.Module):
    """A refinement, a convolution and a skip."""

    def __init__(self, dim: int, refinement: Refinement) -> None:
        super().__init__()
        self.residual_group = refinement
        self.conv = Conv2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.residual_group(x).to(self.conv.weight.dtype), residual=x)


class CRAFT(RestorationNetwork):
    """Heights and widths are padded to multiples of the windows' longer side."""

    architecture = "craft"
    block_types = (ShiftedRectangleBlock, HighFrequencyBlock, FusionBlock)
    signature = ("layers.0.residual_group.srwa_blocks.0.qkv.weight",)
    float32_skips = True

    def __init__(
        self,
        channels: int,
        dim: int,
        depths: tuple[int, ...],
        heads: int,
        hidden: int,
        fusion_hidden: int,
        scale: int,
        split_size: tuple[int, int] = (4, 16),
    ) -> None:
        super().__init__(channels, dim, scale)
        self.multiple = max(split_size)
        self.layers = nn.Sequential(
            *(
                Group(dim, Refinement(dim, depth, heads, hidden, fusion_hidden, split_size))
                for depth in depths
            )
        )
        self.norm = nn.ModuleDict({"body": nn.LayerNorm(dim)})
        self.conv_after_body = Conv2d(dim, dim)
        self.upsample = nn.Sequential(
            nn.Conv2d(dim, scale**2 * channels, 3, 1, 1), nn.PixelShuffle(scale)
        )

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        first = "layers.0.residual_group."
        channels = shapes.size("conv_first.weight", 1)
        key = "upsample.0.weight"
        return {
            "channels": channels,
            "dim": shapes.size("conv_first.weight"),
            "depths": tuple(
                shapes.count(f"layers.{group}.residual_group.hf_blocks")
                for group in range(shapes.count("layers"))
            ),
            "heads": 2 * shapes.size(first + "srwa_blocks.0.attns.0.pos.pos3.2.weight"),
            "hidden": shapes.size(first + "srwa_blocks.0.mlp.fc1.weight"),
            "fusion_hidden": shapes.size(first + "hf_blocks.0.ffn.project_out.weight", 1),
            "scale": upscale_factor(channels, shapes.size(key), key),
        }

    def features(self, x: Tensor) -> Tensor:
        return self.norm["body"](self.layers(x).to(self.conv_after_body.weight.dtype))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.upsample(to_picture(x))
