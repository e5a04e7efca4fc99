"""Begin the idle channels of a halfway network anew, before it is trained on.

    python -m lib_latent_upscale.training revive runs/one --data pairs --out revived.safetensors

A ReLU that is above zero nowhere in the pairs' small latents says nothing, and learns next to
nothing. Its channel gets random weights to listen by and none by which the next layer hears it: the
network computes what it did, and the next run can make something of the channel. This is done to
channels within blocks; those that the blocks hand on have other uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..architectures.halfway import Halfway, ResidualBlock
from ..architectures.layers.tokens import Conv2d
from . import trained
from .idle import IdleChannels
from .options import add_shards, check_above_zero, check_out
from .shards import ShardReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `revive`."""
    add = parser.add_argument
    add("weights", type=Path, metavar="RUN", help="a run's folder or a file of weights")
    add_shards(parser, ", in which a channel must be idle")
    add("--pairs", type=int, default=64, metavar="N", help="how many of them (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the new weights (%(default)s)")
    add("--out", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The command. Raises `TrainingError` for what the user can put right."""
    check_out(options.out)
    check_above_zero(options, "pairs")
    reader = ShardReader(options.data)
    given, network = trained.halfway_of(options.weights, reader.space)
    torch.manual_seed(options.seed)
    revived = revive(network, reader.small_latents(options.pairs))
    trained.write(options.out, network.to_state_dict(), given)
    print(f"{options.out}: {revived} idle channels of {given.path} begin anew")
    return 0


@torch.no_grad()
def revive(network: Halfway, latents: Iterable[Tensor]) -> int:
    """Begins idle channels within the blocks anew, so that the network computes the same.

    latents: (1, C, h, w) in UNet scale, in which a channel must be idle. Draws from torch's random
    numbers. Returns how many channels these were.
    """
    channels = IdleChannels()
    with channels.watched(network):
        for latent in latents:
            network(latent)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    revived = 0
    for block in blocks:
        for layer, after in ((block.conv1, block.conv2), (block.conv2, block.conv3)):
            silent = channels.silent(layer)
            _begin_anew(layer, after, silent)
            revived += int(silent.sum())
    return revived


def _begin_anew(layer: Conv2d, after: Conv2d, silent: Tensor) -> None:
    """Weights as long as the others' are, that sum up to zero: inputs are never negative, and any
    other sum would keep the channel above or below zero everywhere."""
    assert layer.bias is not None
    new = torch.randn_like(layer.weight)
    new -= new.mean(dim=(1, 2, 3), keepdim=True)
    lengths = layer.weight.flatten(1).norm(dim=1)
    usual = (lengths if silent.all() else lengths[~silent]).median()
    new *= (usual / new.flatten(1).norm(dim=1))[:, None, None, None]
    layer.weight[silent] = new[silent]
    layer.bias[silent] = 0
    after.weight[:, silent] = 0
