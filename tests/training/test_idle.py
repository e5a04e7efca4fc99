"""Channels that say nothing are counted."""

from __future__ import annotations

import torch
from torch import nn

from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.training.idle import IdleChannels


def share(network: nn.Module, *pictures: torch.Tensor) -> float:
    channels = IdleChannels()
    with torch.no_grad(), channels.watched(network):
        for picture in pictures:
            network(picture)
    return channels.share


def test_channels_that_never_change_are_idle() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 3, 8, 8)
    assert share(network, x) == 0
    with torch.no_grad():
        network[0].weight[:2] = 0  # two channels are their biases alone
    assert share(network, x, x) == 0.25
    assert not network[0]._forward_hooks
    assert share(network, torch.ones(1, 3, 8, 8)) > 0.25  # nothing to see, nothing seen


def test_one_that_changes_from_picture_to_picture_is_not() -> None:
    network = nn.Conv2d(1, 1, 1)
    assert share(network, torch.zeros(1, 1, 4, 4)) == 1
    assert share(network, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)) == 0


def test_dead_relus_are_idle() -> None:
    """Of tokens, behind the activation."""
    torch.manual_seed(0)
    network = Halfway(channels=4, dim=16, coarse=1, fine=1, folding=1).eval()
    x = torch.randn(1, 4, 12, 12)
    before = share(network, x)
    with torch.no_grad():
        network.fine[0].conv1.bias.fill_(-100)
    assert before < 0.1
    # conv1, and conv2, which then sees nothing but its own bias: 32 of 212 channels.
    assert share(network, x) >= before + 32 / 212
