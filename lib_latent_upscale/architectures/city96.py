"""The convolution stack of city96/SD-Latent-Upscaler v2.1: nearest upsampling, then plain
3x3 convolutions at the large size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .layers.tokens import Conv2d, enlarge, laid_as_tokens, to_picture
from .network import Network, Shapes

_FIRST_BODY = 4  # index 0 is the first convolution, 1 to 3 are ReLU, upsampling, ReLU


class City96(Network):
    """The networks of all factors have the same keys and shapes: `scale` must be told."""

    architecture = "city96"
    signature = ("sequential.0.weight", f"sequential.{_FIRST_BODY}.weight")

    def __init__(self, channels: int, dim: int, depth: int, scale: float) -> None:
        super().__init__()
        self.channels = channels
        self.scale = scale
        self.sequential = nn.ModuleDict({"0": Conv2d(channels, dim)})
        for index in range(depth):
            self.sequential[str(_FIRST_BODY + 2 * index)] = Conv2d(dim, dim)
        self._last = str(_FIRST_BODY + 2 * depth)
        self.sequential[self._last] = Conv2d(dim, channels)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        return {
            "channels": shapes.size("sequential.0.weight", 1),
            "dim": shapes.size("sequential.0.weight"),
            "depth": len(shapes.indices("sequential")) - 2,
        }

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        # A ReLU on either side of the upsampling is one ReLU before it. The factor, not the
        # size, decides which pixel is nearest.
        assert self.scale is not None
        x = self.sequential["0"](laid_as_tokens(x), activation="relu")
        x = enlarge(x, self.scale)
        for key, conv in self.sequential.items():
            if key not in ("0", self._last):
                x = conv(x, activation="relu")
        return to_picture(self.sequential[self._last](x)).contiguous()
