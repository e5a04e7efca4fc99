"""`halfway`: any size between the latent's own and twice that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_latent_upscale.architectures import from_state_dict, identify
from lib_latent_upscale.architectures.halfway import Halfway

SIZES = [(16, 24), (10, 12), (11, 23), (8, 13)]


@pytest.fixture
def network() -> Halfway:
    torch.manual_seed(0)
    return Halfway(channels=4, dim=12, coarse=2, fine=1, folding=2).eval()


def latent() -> Tensor:
    return torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_the_size_that_is_asked_for(network: Halfway, size: tuple[int, int]) -> None:
    with torch.no_grad():
        result = network(latent(), size)
    assert result.shape == (2, 4, *size)
    assert torch.isfinite(result).all()


def test_it_doubles_without_a_size(network: Halfway) -> None:
    with torch.no_grad():
        assert torch.equal(network(latent()), network(latent(), (16, 24)))


def test_its_numbers_of_blocks_are_read_off_its_weights(network: Halfway) -> None:
    weights = network.to_state_dict()
    assert identify(weights) is Halfway
    again = from_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(again(latent()), network(latent()))


def test_every_part_matters(network: Halfway) -> None:
    """No parameter is without effect on the result."""
    network(latent(), (11, 23)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_shipped_size_is_small_and_fast() -> None:
    """At most 30 GFLOP for a 64x64 latent, and 8 MB in float16."""
    with torch.device("meta"):
        network = Halfway(channels=16, dim=64, coarse=3, fine=3, folding=3)
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.empty(1, 16, 64, 64))
    assert counter.get_total_flops() < 30e9
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 8e6
