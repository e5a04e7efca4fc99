"""A device beside the CPU, for machines that have none: the double of a GPU.

Its tensors say that they are on `DEVICE`, and nothing of the CPU's may be mixed with them, as on a
GPU; within them are tensors of the CPU, with which it computes. It has as much memory as a test
gives it, can lack operations, and notes what crosses between it and the CPU. torch calls a device
that it does not know itself "privateuseone"; DirectML is one in earnest.

It needs a torch that lets Python register a device (`AVAILABLE`). Gradients it has none.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

DEVICE = torch.device("privateuseone:0")
_CPU = torch.device("cpu")

_CROSS = {"aten::copy_", "aten::_to_copy"}
"""What may take tensors of both sides."""
_ASK = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero"}
"""What the CPU waits for."""


class Device:
    """What there is one of."""

    def __init__(self) -> None:
        self.held = self.peak = 0
        """Bytes of its tensors, now and at the most since `watched`."""
        self.crossings: list[str] = []
        """What crossed, or what the CPU waited for, as "to (2, 4, 8, 8)", "from ..." or an
        operation's name."""
        self._memory: int | None = None
        self._lacking: frozenset[str] = frozenset()
        self._users = Counter[int]()

    @contextmanager
    def watched(self, memory: int | None = None, lacking: tuple[str, ...] = ()) -> Iterator[Device]:
        """Notes anew, with so many bytes of memory and without some operations ("aten::gelu")."""
        self.peak, self.crossings = self.held, []
        self._memory, self._lacking = memory, frozenset(lacking)
        try:
            yield self
        finally:
            self._memory, self._lacking = None, frozenset()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation of which an argument is here, or whose result is to be."""
        name = func._schema.name
        if name in self._lacking:
            raise NotImplementedError(f"Could not run '{name}' with arguments from here")
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        # As on a GPU, a number is welcome from anywhere.
        if name not in _CROSS and any(one.dim() and not isinstance(one, There) for one in given):
            raise RuntimeError(f"{name} of tensors on two devices")
        if name in _ASK:
            self.crossings.append(name)
        insides = {id(one.inside): one for one in given if isinstance(one, There)}
        here = torch.device(kwargs.get("device") or DEVICE).type == DEVICE.type
        inside_args, inside_kwargs = tree_map(_inside, (args, kwargs))
        inside_kwargs.pop("pin_memory", None)
        result = func(*inside_args, **inside_kwargs)
        if name == "aten::copy_":
            return self._copied(args[0], args[1])
        if not here:
            self.crossings.append(f"from {tuple(result.shape)}")
            return result
        return tree_map(lambda one: insides.get(id(one), _there(one)), result)

    def _copied(self, to: Tensor, given: Tensor) -> Tensor:
        if isinstance(to, There) != isinstance(given, There):
            way = "to" if isinstance(to, There) else "from"
            self.crossings.append(f"{way} {tuple(given.shape)}")
        return to

    def takes(self, tensor: There) -> None:
        """Counts a new tensor's memory; raises if there is not so much."""
        storage = tensor.inside.untyped_storage()
        key, bytes_ = storage._cdata, storage.nbytes()
        if not self._users[key]:
            if self._memory is not None and self.held + bytes_ > self._memory:
                raise RuntimeError(f"out of memory: {bytes_} bytes, {self.held} of which are held")
            self.held += bytes_
            self.peak = max(self.peak, self.held)
        self._users[key] += 1
        weakref.finalize(tensor, self._gives, key, bytes_)

    def _gives(self, key: int, bytes_: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.held -= bytes_


THE_DEVICE = Device()


class There(Tensor):
    """A tensor of that device."""

    inside: Tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({tuple(self.shape)}, {self.dtype})"

    @staticmethod
    def __new__(cls, inside: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(),
            dtype=inside.dtype, layout=inside.layout, device=DEVICE,
        )  # fmt: skip
        there.inside = inside
        THE_DEVICE.takes(there)
        return there

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return THE_DEVICE.run(func, args, kwargs or {})


class FusedAttention(TorchFunctionMode):
    """Attention that holds its result alone, as a GPU's, and no matrix of who looks at whom."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention or not isinstance(args[0], There):
            return func(*args, **(kwargs or {}))
        inside_args, inside_kwargs = tree_map(_inside, (args, kwargs or {}))
        return There(func(*inside_args, **inside_kwargs))


def _inside(value: Any) -> Any:
    if isinstance(value, There):
        return value.inside
    return _CPU if isinstance(value, torch.device) else value


def _there(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) else value


def _register() -> torch.library.Library:
    backend_registration._setup_privateuseone_for_python_backend()
    operations = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided"):
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def made(*args: Any, func: Any = func, **kwargs: Any) -> Any:
            return THE_DEVICE.run(func, args, {**kwargs, "device": DEVICE})

        operations.impl(name, made, "PrivateUse1")
    return operations


_OPERATIONS = _register() if AVAILABLE else None
