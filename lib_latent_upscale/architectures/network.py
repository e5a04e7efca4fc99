"""What every architecture is: a module that can be told apart, described and built by its keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layers.constants import caches_of


class StateDictError(ValueError):
    """A state dict that no architecture here can be built from; the message names the key."""


class Shapes:
    """The shapes of a state dict's tensors, as an architecture reads its hyperparameters off them.

    Asking for a key that is not there raises `StateDictError` with its name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def __getitem__(self, key: str) -> tuple[int, ...]:
        try:
            return self._shapes[key]
        except KeyError:
            raise StateDictError(f"the state dict lacks the key {key!r}") from None

    def size(self, key: str, axis: int = 0) -> int:
        """One side of the tensor `key`."""
        shape = self[key]
        if axis >= len(shape):
            raise StateDictError(f"{key!r} has the shape {shape}; {axis + 1} or more axes expected")
        return shape[axis]

    def indices(self, prefix: str) -> list[int]:
        """The indices that follow `prefix`, in order, as in prefix.0.weight, prefix.2.weight."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = sorted({int(match[1]) for match in map(pattern.match, self._shapes) if match})
        if not found:
            raise StateDictError(f"the state dict lacks the key {prefix + '.0'!r}")
        return found

    def count(self, prefix: str) -> int:
        """How many indices follow `prefix`: all from 0 on, without a gap."""
        found = self.indices(prefix)
        for expected, index in enumerate(found):
            if index != expected:
                raise StateDictError(f"the state dict lacks the key '{prefix}.{expected}'")
        return len(found)


class Network(nn.Module):
    """A latent upscaler network: latents (N, C, H, W) in, larger latents out.

    A subclass names its `architecture`, the keys that only its state dicts have together
    (`signature`), and reads its constructor's arguments off a state dict's shapes
    (`hyperparameters`). What no weight shows is a constructor default: the published value.
    """

    architecture: ClassVar[str]
    signature: ClassVar[tuple[str, ...]]

    block_types: ClassVar[tuple[type[nn.Module], ...]] = ()
    """The classes of the blocks that make it up, each of which can be compiled by itself; without,
    it is one block. They give one tensor each and do not lie within each other."""

    scale: float | None
    """The network's own factor; None where `forward` takes any target size."""
    channels: int
    """Channels of the latents it takes and gives."""

    @classmethod
    def hyperparameters(cls, shapes: Shapes) -> dict[str, Any]:
        """The constructor's arguments that the weights' shapes show."""
        raise NotImplementedError

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Latents (N, C, H, W), H and W of 8 or more, to (N, C, scale * H, scale * W).

        A network whose `scale` is None gives (N, C, *size) and needs `size`; the others
        ignore it.
        """
        raise NotImplementedError

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that this network makes of a latent of that size."""
        if self.scale is None:
            raise ValueError(f"{self.architecture} has no factor of its own: any size goes")
        # The small term keeps 20 * 1.15 = 22.999... from losing a row.
        return int(height * self.scale + 1e-6), int(width * self.scale + 1e-6)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        """What `to` does, by whomever. Constants must not stay where the weights have left: a host
        that is short of memory sends away what it knows of, which is the weights."""
        before = self._whereabouts()
        super()._apply(fn, recurse)
        if self._whereabouts() != before:
            for constants in caches_of(self):
                constants.clear()
        return self

    def _whereabouts(self) -> set[tuple[torch.device, torch.dtype]]:
        return {(weight.device, weight.dtype) for weight in self.parameters()}

    def to_state_dict(self) -> dict[str, Tensor]:
        """The weights under their published keys, without the derived entries."""
        return {
            key: value.detach() for key, value in self.state_dict().items() if not is_derived(key)
        }


def is_derived(key: str) -> bool:
    """Whether published files carry `key` although the architecture alone determines it.

    Position indices and coordinates, attention masks and batch counters: never read, never
    written.
    """
    leaf = key.rsplit(".", 1)[-1]
    return leaf in _DERIVED or leaf.startswith(("relative_position_index", "attn_mask"))


_DERIVED = frozenset({"rpe_biases", "biases_h", "biases_v", "num_batches_tracked"})


def upscale_factor(in_channels: int, out_channels: int, key: str) -> int:
    """The factor of a pixel shuffle that its convolution's channels show."""
    for factor in (2, 3, 4, 5, 6, 8):
        if out_channels == in_channels * factor * factor:
            return factor
    raise StateDictError(
        f"{key!r} turns {in_channels} channels into {out_channels}: no pixel shuffle does that"
    )


@torch.no_grad()
def as_float32(value: Tensor, key: str) -> Tensor:
    """A state dict's tensor in float32; raises `StateDictError` unless it is finite."""
    if not value.is_floating_point():
        raise StateDictError(f"{key!r} has the type {value.dtype}; floating point expected")
    try:
        value = value.to(torch.float32)
    except NotImplementedError as error:  # a type of fewer than eight bits
        raise StateDictError(f"{key!r} has the type {value.dtype}: no network has it") from error
    if not bool(torch.isfinite(value).all()):
        raise StateDictError(f"{key!r} has NaN or infinite values: the file is damaged")
    return value
