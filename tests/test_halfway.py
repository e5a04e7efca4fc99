"""`halfway`: what it is made of, its size, and the files that ship."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_latent_upscale.architectures import from_state_dict, identify
from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.architectures.layers.tokens import to_picture
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.inference import load

from . import published

SHIPPED = [entry.id for entry in CATALOG.values() if entry.architecture == "halfway"]


@pytest.fixture
def network() -> Halfway:
    torch.manual_seed(0)
    return Halfway(channels=4, dim=12, coarse=2, fine=1, folding=2).eval()


def latent() -> Tensor:
    return torch.randn(2, 4, 8, 13, generator=torch.Generator().manual_seed(1))


def test_its_numbers_of_blocks_are_read_off_its_weights(network: Halfway) -> None:
    weights = network.to_state_dict()
    assert identify(weights) is Halfway
    again = from_state_dict(weights)
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
    network.phase.weight.zero_()
    assert torch.allclose(network.resampled(features, (12, 12)), features[..., :12, :12])


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
