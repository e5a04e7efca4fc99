"""`halfway`, our own: half of the way through the picture, by convolutions alone.

The way through the picture decodes a latent, enlarges the picture and encodes it again, and spends
nearly all of its time on large pictures. This network goes half of that way: it unfolds the latent
to features of half a latent pixel, which is as fine as needed to tell what the picture shows, and
which is the pixel of a latent twice as large; and folds them into that. For a smaller target the
features are resampled before they are folded: each wanted one is made of the nearest ones, in a way
that is learnt for where it lies between them, first down the picture, then across. Its blocks and
its doubling are those of TAESD's halves (https://github.com/madebyollin/taesd).
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.chunks import pieces_of
from .layers.tokens import Conv2d, enlarge, laid_as_tokens, to_picture, to_tokens
from .network import Network, Shapes


class ResidualBlock(nn.Module):
    """ReLU(x + three 3x3 convolutions with ReLU between them), (N, H, W, dim) to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(dim, dim)
        self.conv2 = Conv2d(dim, dim)
        self.conv3 = Conv2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.conv1(x, activation="relu"), activation="relu")
        return self.conv3(hidden, residual=x, activation="relu")


class Halfway(Network):
    """Any target size; trained for factors from 1 to 2 (`max_scale`).

    coarse, fine, folding: blocks at the small latent's size, at twice that, and at the target's.
    neighbours: how many features in a row a wanted one is made of, an even number; 0 for linear
        interpolation alone, as it was at first.
    """

    architecture = "halfway"
    block_types = (ResidualBlock,)
    signature = ("unfold.weight", "fold.weight")

    max_scale = 2.0
    scale = None

    def __init__(
        self,
        channels: int,
        dim: int,
        coarse: int,
        fine: int,
        folding: int,
        neighbours: int = 0,
    ) -> None:
        super().__init__()
        self.channels, self.neighbours = channels, neighbours
        self.conv_first = Conv2d(channels, dim)
        self.coarse = _blocks(dim, coarse)
        self.unfold = Conv2d(dim, dim)
        self.fine = _blocks(dim, fine)
        if neighbours:
            self.down = Conv2d(neighbours * dim, _PLACE_CHANNELS * dim, 1, bias=False)
            self.across = Conv2d(neighbours * dim, _PLACE_CHANNELS * dim, 1, bias=False)
        self.phase = nn.Conv2d(2 * _PLACE_CHANNELS, 2 * dim, 1, bias=False)
        self.fold = Conv2d(dim, dim)
        self.folding = _blocks(dim, folding)
        self.conv_last = Conv2d(dim, channels)

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        dim = shapes.size("conv_first.weight")
        learnt = "down.weight" in shapes
        return {
            "channels": shapes.size("conv_first.weight", 1),
            "dim": dim,
            "coarse": shapes.count("coarse"),
            "fine": shapes.count("fine"),
            "folding": shapes.count("folding"),
            "neighbours": shapes.size("down.weight", 1) // dim if learnt else 0,
        }

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        features = self.unfolded(x)
        if size is not None and tuple(size) != tuple(features.shape[1:3]):
            features = to_tokens(self.resampled(to_picture(features), size))
        return to_picture(self.conv_last(self.folding(self.fold(features)))).contiguous()

    def unfolded(self, x: Tensor) -> Tensor:
        """A latent (N, C, H, W) as features (N, 2 * H, 2 * W, dim)."""
        features = self.coarse(self.conv_first(laid_as_tokens(x), activation="relu"))
        return self.fine(self.unfold(enlarge(features, 2)))

    def resampled(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (N, dim, H, W) as (N, dim, *size).

        A feature tells of a patch of the picture, so where in the patches a target's pixel lies
        decides what to make of them: each channel is scaled and shifted by its place.
        """
        between = self._between(features, size)
        # A row's part and a column's are all there is to a place's gain and shift.
        by_row, by_column = self.phase.weight.chunk(2, dim=1)
        rows = F.conv2d(_places(features.shape[-2], size[0]).to(features), by_row)
        columns = F.conv2d(_places(features.shape[-1], size[1]).to(features), by_column)
        gain, shift = (rows + columns.transpose(2, 3)).chunk(2, dim=1)
        return torch.addcmul(between + shift, between, gain)

    def _between(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (N, dim, H, W) as (N, dim, *size), each made of those it lies between."""
        if not self.neighbours:
            return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        tokens = _along(to_tokens(features), 1, size[0], self.down)
        return to_picture(_along(tokens, 2, size[1], self.across))


def _along(x: Tensor, axis: int, wanted: int, layer: Conv2d) -> Tensor:
    """Tokens (N, H, W, C), `wanted` of them on an axis (1 or 2): linear interpolation, and what
    `layer` makes of the nearest ones, as much of it as their places say."""
    given, channels = x.shape[axis], x.shape[3]
    if given == wanted:
        return x
    sides = [wanted if side == axis else x.shape[side] for side in (1, 2)]
    between = F.interpolate(to_picture(x), size=sides, mode="bilinear", align_corners=False)
    between = to_tokens(between)
    nearest = _nearest(given, wanted, layer.in_channels // channels).to(x.device)
    places = _places(given, wanted)[0, :, :, 0].T.to(x)
    values = x.shape[0] * x.shape[3 - axis] * (layer.in_channels + 2 * layer.out_channels)
    parts = []
    for first, last in pieces_of(wanted, values * x.element_size()):
        near = [x.index_select(axis, one[first:last]) for one in nearest]
        found = layer(torch.cat(near, dim=3)).unflatten(3, (_PLACE_CHANNELS, channels))
        by_place = places[first:last, None] if axis == 1 else places[first:last]
        correction = (found * by_place.unsqueeze(-1)).sum(dim=3)
        parts.append(between.narrow(axis, first, last - first) + correction)
    return torch.cat(parts, dim=axis) if len(parts) > 1 else parts[0]


_PLACE_CHANNELS = 3


def _places(given: int, wanted: int) -> Tensor:
    """(1, 3, wanted, 1): how far the resampling goes, and where between two of the given pixels
    each wanted one's centre lies, as cosine and sine; all 0 where the pixels are the same."""
    angles = 2 * pi * _centers(given, wanted)
    channels = [torch.full_like(angles, given / wanted - 1), angles.cos() - 1, angles.sin()]
    return torch.stack(channels)[None, :, :, None].float()


def _nearest(given: int, wanted: int, count: int) -> Tensor:
    """(count, wanted): the given pixels nearest to each wanted one's centre, in their order; at
    the ends the last one again."""
    first = _centers(given, wanted).floor().long() - (count // 2 - 1)
    return (first + torch.arange(count)[:, None]).clamp(0, given - 1)


def _centers(given: int, wanted: int) -> Tensor:
    """Where the centres of the wanted pixels lie among the given ones, the first of which is 0."""
    return (torch.arange(wanted, dtype=torch.float64) + 0.5) * (given / wanted) - 0.5


def _blocks(dim: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(dim) for _ in range(count)))
