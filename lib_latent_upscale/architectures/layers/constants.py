"""Values that follow from weights and sizes alone, computed once instead of at every call."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from .scoped import scoped

_KEPT = 8

_Note = Callable[[Any, Sequence[Tensor], Callable[[Sequence[Tensor]], Any]], None]

_note: ContextVar[_Note | None] = ContextVar("note", default=None)


def noting_constants(note: _Note) -> AbstractContextManager[None]:
    """`note(value, weights, again)` of each constant that this thread gets in the `with` block;
    `again(weights)` gives what it is later, of the weights as they are then."""
    return scoped(_note, note)


def records_gradients(*tensors: Tensor | None) -> bool:
    """Whether what is now computed from these records gradients."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


class ConstantCache:
    """Keeps what `compute(*weights)` gave for a key until one of the weights changes.

    A weight has changed when it was written to in place, replaced, cast or moved. Nothing is
    kept while gradients are recorded, so training sees every step's weights.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    def get(self, key: Hashable, weights: Sequence[Tensor], compute: Callable[..., Any]) -> Any:
        """`compute(*weights)`, or what it gave the last time for this key and these weights."""
        if records_gradients(*weights):
            return compute(*weights)
        value = self._get(key, weights, compute)
        note = _note.get()
        if note is not None:
            note(value, weights, partial(self.get, key, compute=compute))
        return value

    def _get(self, key: Hashable, weights: Sequence[Tensor], compute: Callable[..., Any]) -> Any:
        state = tuple(map(_state, weights))
        kept = self._kept.get(key)
        if kept is not None and kept[0] == state:
            return kept[1]
        _counts["computed"] += 1
        # Of a call that is recorded they are no operations; who measures one's memory, counts them.
        aside = nullcontext() if _note.get() is None else _disable_current_modes()
        # Outside a host's inference mode, for later calls that record gradients of their input.
        with torch.inference_mode(False), torch.no_grad(), aside:
            value = compute(*weights)
        self._kept[key] = (state, value)
        while len(self._kept) > _KEPT:  # sizes come and go; the latest are the likeliest
            self._kept.popitem(last=False)
        return value

    def tensors(self) -> list[Tensor]:
        """What is kept now."""
        kept = tree_flatten([value for _, value in list(self._kept.values())])[0]
        return [one for one in kept if isinstance(one, Tensor)]

    def clear(self) -> None:
        """Forgets all; it is computed anew where it is needed."""
        self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> ConstantCache:
        return type(self)()

    def __reduce__(self) -> tuple[type[ConstantCache], tuple[()]]:
        return type(self), ()


def caches_of(network: nn.Module) -> Iterator[ConstantCache]:
    """Those of all its modules."""
    for module in network.modules():
        yield from (one for one in vars(module).values() if isinstance(one, ConstantCache))


_counts = Counter[str]()


def computed() -> int:
    """How many constants have been computed in this process."""
    return _counts["computed"]


def _state(weight: Tensor) -> tuple[Any, ...]:
    # Inference tensors keep no version: nothing can write to them outside inference mode.
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that `conv` and `norm` in eval mode are."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * gain
    if conv.bias is not None:
        bias = bias + conv.bias * gain
    return conv.weight * gain.view(-1, 1, 1, 1), bias
