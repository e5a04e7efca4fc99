"""A call of a network under way: who may stop it, and who is told how far it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from torch import nn

from .architectures.layers.chunks import before_pieces
from .architectures.layers.scoped import scoped


class Interrupted(Exception):
    """The caller's `should_stop` answered yes while a network ran."""


# Of this thread, not of a network: hooks are copied along with a network.
_call: ContextVar[Call | None] = ContextVar("call", default=None)


class Call:
    """What this thread computes in the `with` block.

    name: what messages call the network. should_stop: asked before every step; on True the step
    raises `Interrupted`. progress: told there which part is done, from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._name, self._should_stop, self._progress = name, should_stop, progress
        self._expected = self._done = self._running = 0
        self._told = 0.0

    def expects(self, pixels: int) -> None:
        """So many pixels of latents will go through the network, all passes together."""
        self._expected = pixels

    def begins(self, pixels: int) -> None:
        """The next run of the network is on so many of them."""
        self._done, self._running = self._done + self._running, pixels

    def at(self, part: float) -> None:
        """The run has come to this part of its steps."""
        self.check()
        if self._progress is None or not self._expected:
            return
        done = (self._done + part * self._running) / self._expected
        # Steps need not run in the order of the modules, and tiles overlap.
        self._told = max(self._told, min(done, 1.0))
        self._progress(self._told)

    def check(self) -> None:
        if self._should_stop is not None and self._should_stop():
            raise Interrupted(f"{self._name} was interrupted")

    def __enter__(self) -> Call:
        self._scope = ExitStack()
        self._scope.enter_context(scoped(_call, self))
        self._scope.enter_context(before_pieces(self.check))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._scope.__exit__(*exception)


def before_each_step(network: nn.Module) -> None:
    """Makes the network tell the `Call` of its thread at every step.

    A step is a module of a list, a sequence or a dictionary of modules, or one made of others.
    """
    holders = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    held = {
        id(one)
        for module in network.modules()
        if isinstance(module, holders)
        for one in module.children()
    }
    steps = [
        module
        for module in network.modules()
        if id(module) in held
        or (module is not network and not isinstance(module, holders) and any(module.children()))
    ]
    for index, step in enumerate(steps):
        step.register_forward_pre_hook(functools.partial(_at, index / len(steps)))


def _at(part: float, *_: Any) -> None:
    call = _call.get()
    if call is not None:
        call.at(part)
