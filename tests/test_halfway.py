"""`halfway`: what it is made of, its size, and the files that ship."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_latent_upscale.architectures import from_state_dict, identify
from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.inference import load
from lib_latent_upscale.spaces import SPACES

from . import published


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


def test_every_part_matters(network: Halfway) -> None:
    """No parameter is without effect on the result."""
    network(latent()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("space", SPACES)
def test_the_shipped_files_give_their_golden_outputs(space: str) -> None:
    check = load_file(published.GOLDEN / "halfway-check.safetensors")
    network = load(f"bundled-{space}").network
    with torch.no_grad():
        result = network(check[f"{space}.x"])
    expected = check[f"{space}.y"]
    assert float((result - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("space", SPACES)
def test_the_shipped_networks_are_small_and_fast(space: str) -> None:
    """At most 30 GFLOP for a 64x64 latent, and 8 MB in float16."""
    upscaler = load(f"bundled-{space}")
    network = upscaler.network.to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, upscaler.space.channels, 64, 64, device="meta"))
    assert 10e9 < counter.get_total_flops() < 30e9
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 8e6
