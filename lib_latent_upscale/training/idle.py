"""Channels of a network that say nothing: whose values are the same everywhere in every picture.

A ReLU whose input is never above zero is one, and stays one: it has no gradient. Whole blocks of a
network can go that way without a trace in the losses but that these stop falling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..architectures.layers import tokens


class IdleChannels:
    """What the channels of a network's convolutions, with the activations in their layers, do."""

    def __init__(self) -> None:
        self._ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def share(self) -> float:
        """Of all channels, those that never differed from what they were at first."""
        idle = [lowest == highest for lowest, highest in self._ranges.values()]
        return float(torch.cat(idle).double().mean()) if idle else 0.0

    def silent(self, layer: nn.Module) -> Tensor:
        """Which channels of a layer that was watched never were but 0, (channels,) of bool."""
        lowest, highest = self._ranges[layer]
        return (lowest == 0) & (highest == 0)

    @contextmanager
    def watched(self, network: nn.Module) -> Iterator[None]:
        """Looks at what `network` computes in the `with` block, which trains nothing."""
        hooks = [
            module.register_forward_hook(self._look)
            for module in network.modules()
            if isinstance(module, nn.Conv2d)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        is_tokens = isinstance(module, (tokens.Conv2d, tokens.DepthwiseConv2d))
        channels = result.detach().movedim(-1 if is_tokens else 1, 0).flatten(1)
        lowest, highest = channels.amin(dim=1), channels.amax(dim=1)
        if module in self._ranges:
            before = self._ranges[module]
            lowest, highest = lowest.minimum(before[0]), highest.maximum(before[1])
        self._ranges[module] = lowest, highest
