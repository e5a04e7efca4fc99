"""`halfway`: what it is made of, its size, and the files that ship."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_latent_upscale.architectures import from_state_dict, identify
from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.architectures.layers.chunks import before_pieces, chunk_limit
from lib_latent_upscale.architectures.layers.tokens import to_picture
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.inference import load
from lib_latent_upscale.training import initial

from . import published

SHIPPED = [entry.id for entry in CATALOG.values() if entry.architecture == "halfway"]


@pytest.fixture(params=[0, 4])
def network(request: pytest.FixtureRequest) -> Halfway:
    torch.manual_seed(0)
    return Halfway(channels=4, dim=12, coarse=2, fine=1, folding=2, neighbours=request.param).eval()


def latent() -> Tensor:
    return torch.randn(2, 4, 8, 13, generator=torch.Generator().manual_seed(1))


def test_its_numbers_of_blocks_are_read_off_its_weights(network: Halfway) -> None:
    weights = network.to_state_dict()
    assert identify(weights) is Halfway
    again = from_state_dict(weights)
    assert isinstance(again, Halfway) and again.neighbours == network.neighbours
    with torch.no_grad():
        result = again(latent())
        assert result.shape == (2, 4, 16, 26)
        assert torch.equal(result, network(latent()))
        assert torch.equal(again(latent(), (11, 20)), network(latent(), (11, 20)))


def test_every_part_matters(network: Halfway) -> None:
    """No parameter is without effect on the result."""
    network(latent(), (12, 20)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_any_size_up_to_twice(network: Halfway) -> None:
    """Twice needs no resampling, and so has none: each side for itself."""
    x = latent()
    double = network(x)
    assert torch.equal(network(x, (16, 26)), double)
    features = to_picture(network.unfolded(x))
    assert torch.allclose(network.resampled(features, (16, 26)), features, atol=1e-6)
    for size in ((8, 13), (9, 14), (12, 20), (16, 20), (12, 26)):
        assert network(x, size).shape == (2, 4, *size)


@torch.no_grad()
def test_where_a_pixel_lies_between_two_features_counts(network: Halfway) -> None:
    """With the same features everywhere, three pixels for four features differ among each other,
    and every third is alike; without the phase's weights, all are."""
    features = torch.rand(1, 12, 1, 1).expand(1, 12, 16, 16)
    found = network.resampled(features, (12, 12))
    assert torch.allclose(found[..., 3:9, :], found[..., 6:12, :], atol=1e-6)
    assert torch.allclose(found[..., 3:9], found[..., 6:12], atol=1e-6)
    for shift in (1, 2):
        assert not torch.allclose(found[..., 3:9], found[..., 3 + shift : 9 + shift], atol=1e-3)
    initial.plain_resampling(network)
    assert torch.allclose(network.resampled(features, (12, 12)), features[..., :12, :12])


@torch.no_grad()
def test_a_feature_is_made_of_its_neighbours(network: Halfway) -> None:
    """Of the two that it lies between, or of two more on each axis; at the ends of those there
    are."""
    network.phase.weight.zero_()
    features = torch.rand(1, 12, 16, 16)
    before = network.resampled(features, (12, 12))
    reach = network.neighbours // 2 or 1
    for row, column in ((0, 0), (7, 10), (15, 15)):
        changed = features.clone()
        changed[0, :, row, column] += 1
        moved = (network.resampled(changed, (12, 12)) - before).abs().sum((0, 1)) > 1e-6
        for axis, place in ((1, row), (0, column)):
            centers = (torch.arange(12) + 0.5) * 16 / 12 - 0.5
            lowest = centers.floor() + 1 - reach
            of = torch.stack([(lowest + one).clamp(0, 15) == place for one in range(2 * reach)])
            assert torch.equal(moved.any(axis), of.any(0))


@torch.no_grad()
def test_resampling_in_pieces_is_as_in_one(network: Halfway) -> None:
    x, size = latent(), (12, 19)
    pieces: list[int] = []
    whole = network(x, size)
    with chunk_limit(10_000), before_pieces(lambda: pieces.append(1)):
        found = network(x, size)
    assert torch.allclose(found, whole, atol=1e-6)
    assert bool(pieces) is bool(network.neighbours)


@pytest.mark.parametrize("id", SHIPPED)
def test_the_shipped_files_give_their_golden_outputs(id: str) -> None:
    check = load_file(published.GOLDEN / "halfway-check.safetensors")
    network = load(id).network
    for expected, size in ((check[f"{id}.y"], None), (check[f"{id}.z"], (15, 18))):
        with torch.no_grad():
            result = network(check[f"{id}.x"], size)
        assert float((result - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("id", SHIPPED)
def test_the_shipped_networks_are_small_and_fast(id: str) -> None:
    """At most 30 GFLOP for a 64x64 latent, and 8 MB in float16."""
    upscaler = load(id)
    network = upscaler.network.to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, upscaler.space.channels, 64, 64, device="meta"))
    assert 10e9 < counter.get_total_flops() < 30e9
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 8e6
