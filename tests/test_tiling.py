"""Tiles: the network's own result where it looks no farther than they overlap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.tiling import tiled

_sides = st.integers(8, 150)


def enlarged(scale: float) -> Callable[[Tensor], Tensor]:
    """Looks at one pixel and its neighbours, and knows where it is not."""

    def network(x: Tensor) -> Tensor:
        blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.interpolate(blurred, scale_factor=scale, mode="nearest")

    return network


@given(_sides, _sides, st.sampled_from([1.25, 1.5, 2, 3]), st.sampled_from([32, 64]))
@settings(max_examples=60, deadline=None)
def test_a_network_that_looks_near_gives_the_same(
    height: int, width: int, scale: float, tile: int
) -> None:
    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(height))
    network = enlarged(scale)
    whole = network(x)
    result = tiled(network, x, scale, tile)
    assert result.shape == whole.shape
    # At a tile's edge the blur lacks a neighbour: there, its weight is the smallest.
    assert (result - whole).abs().mean() < 0.02 * whole.abs().mean()


def test_what_fits_is_one_tile() -> None:
    network = Compact(channels=4, dim=8, depth=2, scale=2).eval()
    x = torch.randn(2, 4, 24, 32)
    with torch.no_grad():
        assert torch.equal(tiled(network, x, 2, 32), network(x))


@pytest.mark.parametrize("scale", [1.25, 1.5, 2.0])
def test_a_real_network_shows_no_seam(scale: float) -> None:
    torch.manual_seed(0)
    network = City96(channels=4, dim=16, depth=4, scale=scale).eval()
    x = torch.randn(1, 4, 101, 77)
    with torch.no_grad():
        whole, result = network(x), tiled(network, x, scale, 64)
    assert result.shape == whole.shape
    # Six 3x3 convolutions see less far than the overlap: only the fading edges may differ.
    assert (result - whole).norm() / whole.norm() < 2e-2
