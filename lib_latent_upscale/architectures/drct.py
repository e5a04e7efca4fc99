"""DRCT: Dense-Residual-Connected Transformer (Hsu et al., CVPRW 2024).

Each group is a dense block of five Swin blocks: what one finds is narrowed to a few channels
and laid beside what the next one sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.restoration import PixelShuffleTail
from .layers.spectral import SpatialFrequencyBlock
from .layers.swin import SwinBlock, window_side
from .layers.tokens import Conv2d
from .network import Shapes

_BLOCKS = 5


class DenseGroup(nn.Module):
    """Five Swin blocks of growing width, every second one shifted, and a damped skip."""

    def __init__(
        self, dim: int, growth: int, heads: tuple[int, ...], window: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        for index in range(_BLOCKS):
            width = dim + index * growth
            block = SwinBlock(width, heads[index], window, hidden[index], shifted=index % 2 == 1)
            out = growth if index < _BLOCKS - 1 else dim
            self.add_module(f"swin{index + 1}", block)
            self.add_module(f"adjust{index + 1}", Conv2d(width, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for index in range(1, _BLOCKS):
            block, adjust = self.get_submodule(f"swin{index}"), self.get_submodule(f"adjust{index}")
            dense = torch.cat((dense, F.leaky_relu(adjust(block(dense)), 0.2)), dim=-1)
        return x + 0.2 * self.get_submodule(f"adjust{_BLOCKS}")(
            self.get_submodule(f"swin{_BLOCKS}")(dense)
        )


class DRCT(PixelShuffleTail):
    """Heights and widths are padded to multiples of the window.

    `spectral`: whether the body ends in a spatial-frequency block (DRCTFIR) in place of a
    convolution.
    """

    architecture = "drct"
    block_types = (SwinBlock, SpatialFrequencyBlock)
    signature = ("layers.0.swin1.attn.relative_position_bias_table", "layers.0.adjust1.weight")

    def __init__(
        self,
        channels: int,
        dim: int,
        groups: int,
        growth: int,
        heads: tuple[int, ...],
        window: int,
        hidden: tuple[int, ...],
        scale: int,
        tail_dim: int,
        spectral: bool,
    ) -> None:
        super().__init__(channels, dim, scale)
        self.multiple = window
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.layers = nn.Sequential(
            *(DenseGroup(dim, growth, heads, window, hidden) for _ in range(groups))
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = SpatialFrequencyBlock(dim) if spectral else Conv2d(dim, dim)
        self._build_tail(dim, tail_dim)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        tables = [
            f"layers.0.swin{index + 1}.attn.relative_position_bias_table"
            for index in range(_BLOCKS)
        ]
        return {
            **cls.tail_hyperparameters(shapes),
            "groups": shapes.count("layers"),
            "growth": shapes.size("layers.0.adjust1.weight"),
            "heads": tuple(shapes.size(table, 1) for table in tables),
            "window": window_side(shapes.size(tables[0])),
            "hidden": tuple(
                shapes.size(f"layers.0.swin{index + 1}.mlp.fc1.weight") for index in range(_BLOCKS)
            ),
            "spectral": "conv_after_body.fusion.weight" in shapes,
        }

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self.patch_embed["norm"](x)))
