"""DAT: Dual Aggregation Transformer (Chen et al., ICCV 2023).

Blocks of attention within windows and blocks of attention between channels take turns; each
mixes with a depthwise convolution through gates that the two compute for each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.attention import channel_mix, channel_weights
from .layers.chunks import by_rows
from .layers.constants import ConstantCache, fold_batch_norm
from .layers.linear import Linear
from .layers.rectangle import RectanglePair
from .layers.restoration import PixelShuffleTail
from .layers.tokens import Conv2d, DepthwiseConv2d, convolve, to_picture, to_tokens
from .network import Shapes


class AdaptiveInteraction(nn.Module):
    """What both kinds of attention have besides: the convolution and the two gates.

    Subclasses attend; the keys (qkv, proj, dwconv, the interactions) are the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        squeezed_channels, squeezed_space = dim // 8, dim // 16
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.dwconv = nn.Sequential(DepthwiseConv2d(dim), nn.BatchNorm2d(dim), nn.GELU())
        self.channel_interaction = nn.Sequential(
            nn.Identity(),  # the published pooling has this index
            Conv2d(dim, squeezed_channels, 1),
            nn.BatchNorm2d(squeezed_channels),
            nn.GELU(),
            Conv2d(squeezed_channels, dim, 1),
        )
        self.spatial_interaction = nn.Sequential(
            Conv2d(dim, squeezed_space, 1),
            nn.BatchNorm2d(squeezed_space),
            nn.GELU(),
            Conv2d(squeezed_space, 1, 1),
        )
        self._constants = ConstantCache()

    def convolve(self, x: Tensor) -> Tensor:
        """The depthwise branch on the values, (N, H, W, C)."""
        return self._conv_norm_gelu(self.dwconv, 0, x)

    def channel_gate(self, mean: Tensor) -> Tensor:
        """From a branch's mean over the picture, (N, 1, 1, C); to the same shape, in 0..1."""
        squeezed = self._conv_norm_gelu(self.channel_interaction, 1, mean)
        return torch.sigmoid(self.channel_interaction[4](squeezed))

    def spatial_gate(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, 1), in 0..1."""
        squeezed = self._conv_norm_gelu(self.spatial_interaction, 0, x)
        return torch.sigmoid(self.spatial_interaction[3](squeezed))

    def _conv_norm_gelu(self, layers: nn.Sequential, index: int, x: Tensor) -> Tensor:
        """The convolution `layers[index]` with the batch norm behind it, one in eval, and GELU."""
        conv, norm = layers[index], layers[index + 1]
        assert isinstance(conv, (Conv2d, DepthwiseConv2d)) and isinstance(norm, nn.BatchNorm2d)
        if norm.training:
            return F.gelu(to_tokens(norm(to_picture(conv(x)))))
        weights = (*conv.parameters(), *norm.parameters(), *norm.buffers())

        def compute(*_: Tensor) -> tuple[Tensor, Tensor]:
            return fold_batch_norm(conv, norm)

        weight, bias = self._constants.get(id(layers), weights, compute)
        return convolve(x, weight, bias, "gelu", packed=conv.packed)


def _mean(x: Tensor) -> Tensor:
    """(N, H, W, C) to (N, 1, 1, C)."""
    # A mean of half precision converts all of it to float32 first, on a CPU; a sum does not.
    columns = x.sum(dim=1, keepdim=True) / x.shape[1]
    return columns.mean(dim=2, keepdim=True)


class SpatialAttention(AdaptiveInteraction):
    """Attention within rectangular windows; the picture padded with zeros to whole windows."""

    def __init__(self, dim: int, heads: int, split_size: tuple[int, int], *, shifted: bool) -> None:
        super().__init__(dim)
        self.multiple = max(split_size)
        self.attns = RectanglePair(dim, heads, split_size, shifted=shifted, masked=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v = self.qkv.parts(x, 3)
        convolved = self.convolve(v)
        pad = (0, 0, 0, -width % self.multiple, 0, -height % self.multiple)
        if any(pad):
            q, k, v = (F.pad(part, pad) for part in (q, k, v))
        attended = self.attns(q, k, v)[:, :height, :width]
        blend = convolved * self.spatial_gate(attended)
        blend.addcmul_(attended, self.channel_gate(_mean(convolved)))
        return self.proj(blend, residual=skip)


class ChannelAttention(AdaptiveInteraction):
    """Attention between channels, over the whole picture."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        q, k, v = self.qkv.parts(x, 3)
        weights = channel_weights(q, k, self.temperature)
        convolved = self.convolve(v)
        # The attention is linear at each position: its mean is that of the mean, and a position's
        # gate may come before it.
        attended = channel_mix(weights, _mean(v))
        blend = convolved * self.channel_gate(attended)
        channel_mix(weights, v * self.spatial_gate(convolved), onto=blend)
        return self.proj(blend, residual=skip)


class SpatialGate(nn.Module):
    """Gates tokens with others, normed and convolved."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = DepthwiseConv2d(dim)

    def forward(self, kept: Tensor, gate: Tensor) -> Tensor:
        return self.conv(self.norm(gate), gate=kept)


class SpatialGateFeedForward(nn.Module):
    """An MLP of which one half of the hidden channels gates the other."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.sg = SpatialGate(hidden // 2)
        self.fc2 = Linear(hidden // 2, dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return by_rows(self._forward, x, skip, width=2 * self.fc1.out_features, reach=1)

    def _forward(self, x: Tensor, skip: Tensor) -> Tensor:
        kept, gate = self.fc1.parts(x, 2, activation="gelu")
        return self.fc2(self.sg(kept, gate), residual=skip)


class Block(nn.Module):
    """Attention of either kind and the feed-forward network, each with norm and skip."""

    def __init__(self, dim: int, hidden: int, attention: AdaptiveInteraction) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.ffn = SpatialGateFeedForward(dim, hidden)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x), skip=x)
        return self.ffn(self.norm2(x), skip=x)


class Group(nn.Module):
    """Blocks in a row, a convolution and a skip."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        split_size: tuple[int, int],
        *,
        index: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for block in range(depth):
            # Every second block attends to channels; of the others every second one, counted
            # on through the groups' indices, has shifted windows.
            attention = (
                ChannelAttention(dim, heads)
                if block % 2
                else SpatialAttention(dim, heads, split_size, shifted=(index + block // 2) % 2 == 1)
            )
            self.blocks.append(Block(dim, hidden, attention))
        self.conv = Conv2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.blocks(x), residual=x)


class DAT(PixelShuffleTail):
    """Any height and width: its attention pads by itself, so nothing is padded outside."""

    architecture = "dat"
    block_types = (Block,)
    signature = ("layers.0.blocks.0.attn.attns.0.pos.pos_proj.weight", "before_RG.1.weight")

    def __init__(
        self,
        channels: int,
        dim: int,
        depths: tuple[int, ...],
        heads: int,
        hidden: int,
        scale: int,
        tail_dim: int,
        split_size: tuple[int, int] = (8, 16),
    ) -> None:
        super().__init__(channels, dim, scale)
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(dim))
        self.layers = nn.Sequential(
            *(
                Group(dim, depth, heads, hidden, split_size, index=index)
                for index, depth in enumerate(depths)
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = Conv2d(dim, dim)
        self._build_tail(dim, tail_dim)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        groups = shapes.count("layers")
        return {
            **cls.tail_hyperparameters(shapes),
            "depths": tuple(shapes.count(f"layers.{group}.blocks") for group in range(groups)),
            "heads": 2 * shapes.size("layers.0.blocks.0.attn.attns.0.pos.pos3.2.weight"),
            "hidden": shapes.size("layers.0.blocks.0.ffn.fc1.weight"),
        }

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self.before_RG(x)))
