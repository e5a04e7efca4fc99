"""The moving average of a network's weights, which is better than any one step's."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """An average with a memory of 1 / (1 - decay) steps, and never of more than a share of those
    so far.

    decay: 0 to 1; with 0 it is the network itself at every step.
    share: 0 to 1. Small, what a random network was is soon forgotten; with 1 all steps count alike
        until the memory is full, and what it began from as one of them, which is best where that
        was good already.
    """

    def __init__(self, network: nn.Module, decay: float, share: float = 1 / 9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"an average's decay is from 0 to below 1, not {decay}")
        if not 0 < share <= 1:
            raise ValueError(f"an average's share of the steps is above 0, up to 1, not {share}")
        self.decay, self.share = decay, share
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after a step, counted from 0. Norms' averages are averaged, too."""
        keep = min(self.decay, 1 - 1 / (1 + self.share * (1 + step)))
        own, new = self.network.state_dict(), network.state_dict()
        floats = [key for key, value in own.items() if value.is_floating_point()]
        means = [own[key] for key in floats]
        torch._foreach_lerp_(means, [new[key].to(own[key]) for key in floats], 1 - keep)
        for key in own.keys() - floats:
            own[key].copy_(new[key])
