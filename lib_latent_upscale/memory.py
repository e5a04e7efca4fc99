"""How much memory a computation takes on the way, found without computing it; and how it looks
when there is too little."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .architectures.network import Network


def peak_bytes(network: Network, function: Callable[[], Any]) -> int:
    """The most that tensors would take at once during `function()`, beyond those that were there
    before.

    network: what `function` runs, on the "meta" device, whose tensors have no values; it is of no
        other use afterwards. Of blocks that are alike, two run; the others are taken to hold and
        keep (position biases and the like) what those did.

    Fused attention is taken to hold its result alone, as it does on CPUs and GPUs; what libraries
    allocate for themselves is not known.
    """
    held = _Held()
    seen: dict[Hashable, list[_Ran]] = {}
    for block in network.modules():
        if isinstance(block, network.block_types):
            block.forward = partial(_run, block, held, seen)
    with _FusedAttention(), held:
        function()
    return held.peak


@dataclass(frozen=True)
class _Ran:
    """What a block's run gave, and the bytes that it kept for later ones."""

    shape: torch.Size
    dtype: torch.dtype
    kept: int


def _run(
    block: nn.Module, held: _Held, seen: dict[Hashable, list[_Ran]], *args: Any, **kwargs: Any
) -> Tensor:
    """`block(*args, **kwargs)`, or what stands in for it if two such have run."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    weights = tuple(weight.shape for weight in block.parameters())
    ran = seen.setdefault((type(block), weights, *((one.shape, one.dtype) for one in tensors)), [])
    if len(ran) < 2:  # windows of every second one are shifted
        before = held.now
        result = type(block).forward(block, *args, **kwargs)
        kept = held.now - before - result.untyped_storage().nbytes()
        ran.append(_Ran(result.shape, result.dtype, max(0, kept)))
        return result
    held.hold(max(one.kept for one in ran))
    return torch.empty(ran[0].shape, dtype=ran[0].dtype, device="meta")


class _Held(TorchDispatchMode):
    """Follows the memory of tensors by their storages, which views share."""

    def __init__(self) -> None:
        super().__init__()
        self._users: dict[int, int] = {}
        self.now = self.peak = 0

    def hold(self, bytes_: int) -> None:
        """From now on, so many more."""
        self.now += bytes_
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(value) for value in tree_flatten((args, kwargs))[0]}
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor) and value.is_meta and id(value) not in before:
                self._add(value, args)
        return result

    def _add(self, value: Tensor, args: tuple[Any, ...]) -> None:
        storage = value.untyped_storage()
        key, bytes_ = storage._cdata, storage.nbytes()
        if key not in self._users:
            if any(_shares(one, key) for one in tree_flatten(args)[0]):
                return  # a view of what was there before
            self._users[key] = 0
            self.hold(bytes_)
        self._users[key] += 1
        weakref.finalize(value, self._drop, key, bytes_)

    def _drop(self, key: int, bytes_: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.now -= bytes_


def _shares(value: Any, storage: int) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage()._cdata == storage


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how a device says that its memory ran out."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()  # of CPU, MPS and DirectML, which have no class of their own for it
    return any(words in text for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "not enough gpu")
