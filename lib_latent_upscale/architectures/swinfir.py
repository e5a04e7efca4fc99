"""SwinFIR (Zhang et al., 2022): SwinIR whose groups end in a spatial-frequency block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .layers.restoration import PixelShuffleTail
from .layers.spectral import SpatialFrequencyBlock
from .layers.swin import SwinBlock, window_side
from .layers.tokens import Conv2d
from .network import Shapes


class Group(nn.Module):
    """Swin blocks, every second one shifted, a spatial-frequency block and a skip."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, hidden: int) -> None:
        super().__init__()
        blocks = (
            SwinBlock(dim, heads, window, hidden, shifted=index % 2 == 1) for index in range(depth)
        )
        self.residual_group = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        self.conv = SpatialFrequencyBlock(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group["blocks"](x))


class SwinFIR(PixelShuffleTail):
    """Heights and widths are padded to multiples of the window."""

    architecture = "swinfir"
    block_types = (SwinBlock, SpatialFrequencyBlock)
    signature = (
        "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
        "layers.0.conv.fusion.weight",
    )

    def __init__(
        self,
        channels: int,
        dim: int,
        depths: tuple[int, ...],
        heads: int,
        window: int,
        hidden: int,
        scale: int,
        tail_dim: int,
    ) -> None:
        super().__init__(channels, dim, scale)
        self.multiple = window
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.layers = nn.Sequential(*(Group(dim, depth, heads, window, hidden) for depth in depths))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = Conv2d(dim, dim)
        self._build_tail(dim, tail_dim)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        block = "layers.0.residual_group.blocks.0."
        offsets, heads = shapes[block + "attn.relative_position_bias_table"]
        return {
            **cls.tail_hyperparameters(shapes),
            "depths": tuple(
                shapes.count(f"layers.{group}.residual_group.blocks")
                for group in range(shapes.count("layers"))
            ),
            "heads": heads,
            "window": window_side(offsets),
            "hidden": shapes.size(block + "mlp.fc1.weight"),
        }

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self.patch_embed["norm"](x)))
