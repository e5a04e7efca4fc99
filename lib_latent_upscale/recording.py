"""What a module computes, as a graph of torch's basic operations, recorded while it computes it."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from .architectures.layers.constants import noting_constants
from .architectures.layers.scoped import scoped

_Look = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True)
class Recording:
    """One call of a module.

    graph: the operations; its inputs are the call's tensors, then weights and constants; its
        output is a tuple of one tensor.
    """

    graph: fx.Graph
    _looks: tuple[_Look, ...]
    _lifted: tuple[_Lifted, ...]
    _packed: tuple[_Lifted, ...]

    def module(self) -> fx.GraphModule:
        """The graph as a module: what a compiler takes."""
        return fx.GraphModule({}, self.graph)

    @property
    def kind(self) -> Hashable:
        """The same for two calls that differ in their tensors' values alone."""
        return self.graph.python_code("self").src, self._looks

    def call(self, function: Callable[..., Any], module: nn.Module, *inputs: Tensor) -> Tensor:
        """What `function`, this graph compiled or as it is, makes of inputs like the recorded ones.

        With the weights of `module` and the constants of this moment: a host may have moved them.
        """
        lifted = [_now(one, module) for one in self._lifted]
        with scoped(_at_hand, [_now(one, module) for one in self._packed]):
            (result,) = function(*inputs, *lifted)
        return result

    def examples(self) -> list[Tensor]:
        """Tensors of the looks that the graph takes, all zeros."""
        examples = []
        for shape, stride, dtype, device in self._looks:
            one = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            examples.append(one.zero_())
        return examples


def record(
    function: Callable[..., Tensor],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Recording]:
    """`function(*args, **kwargs)`, which uses the weights of `module`, and its recording.

    Nothing it computes on the way is held longer than it would be.
    """
    inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    recorder = _Recorder(inputs)
    with recorder, noting_constants(recorder.note):
        result = function(*args, **kwargs)
    recorder.graph.output((recorder.nodes[result],))
    names = {id(value): name for name, value in module.named_parameters()}
    names.update((id(value), name) for name, value in module.named_buffers())

    def origin(tensor: Tensor) -> _Lifted:
        name, constant = names.get(id(tensor)), recorder.constants.get(id(tensor))
        return name or (tensor if constant is None else constant.again)

    looks = tuple(
        (tuple(one.shape), one.stride(), one.dtype, one.device)
        for one in (*inputs, *recorder.lifted)
    )
    lifted, packed = (tuple(map(origin, of)) for of in (recorder.lifted, recorder.packed))
    return result, Recording(recorder.graph, looks, lifted, packed)


@dataclass(frozen=True)
class _Constant:
    """A tensor of a constant, which is held as long as this, and how to get it later."""

    tensor: Tensor
    again: Callable[[], Tensor]


_INTO_VIEWS = {
    torch.ops.aten.baddbmm_.default: torch.ops.aten.baddbmm.default,
    torch.ops.aten.add.out: torch.ops.aten.add.Tensor,
}
"""What the networks do in place in a part of a tensor, or in one that lies otherwise.

A compiler does without that, and takes the result as it would lie by itself for the tensor, of
which it then cannot make the same views. A copy into it, it can.
"""


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes = WeakTensorKeyDictionary()
        self.lifted: list[Tensor] = []
        self.packed: list[Tensor] = []
        self.constants: dict[int, _Constant] = {}
        self._last_input: fx.Node | None = None
        self._inputs = 0
        for one in inputs:
            self._input(one)

    def note(
        self, value: Any, weights: Sequence[Tensor], again: Callable[[Sequence[Tensor]], Any]
    ) -> None:
        """A constant that was taken: `again(weights)` later, some of which may be constants."""
        of = [
            self.constants[id(one)].again if id(one) in self.constants else one for one in weights
        ]
        for index, one in enumerate(tree_flatten(value)[0]):
            later = partial(_part, index, again, of)
            self.constants.setdefault(id(one), _Constant(one, later))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = tree_map(self._node, (args, kwargs))
        node = self._call(func, *taken)
        if isinstance(result, Tensor):
            self.nodes[result] = node
        elif isinstance(result, (tuple, list)):
            for index, one in enumerate(result):
                if isinstance(one, Tensor):
                    self.nodes[one] = self.graph.call_function(operator.getitem, (node, index))
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        if func in _INTO_VIEWS:
            kwargs = dict(kwargs)
            into = kwargs.pop("out", args[0])
            result = self.graph.call_function(_INTO_VIEWS[func], args, kwargs)
            return self.graph.call_function(torch.ops.aten.copy_.default, (into, result))
        if getattr(func, "namespace", None) == "mkldnn":
            func = _opaque(func, args)
        return self.graph.call_function(func, args, kwargs)

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_mkldnn:  # no compiler takes one: its operations find it
            self.packed.append(value)
            return [len(self.packed) - 1, value.shape[0]]
        if value not in self.nodes:
            self.lifted.append(value)
            self._input(value)
        return self.nodes[value]

    def _input(self, value: Tensor) -> None:
        self._inputs += 1
        if self._last_input is None:
            node = self.graph.placeholder(f"input_{self._inputs}")
        else:
            with self.graph.inserting_after(self._last_input):
                node = self.graph.placeholder(f"input_{self._inputs}")
        self._last_input = self.nodes[value] = node


_Lifted = str | Tensor | Callable[[], Tensor]
"""A weight by its name in the module; a tensor that is what it is; a constant to be asked for."""


def _now(lifted: _Lifted, module: nn.Module) -> Tensor:
    if isinstance(lifted, Tensor):
        return lifted
    if callable(lifted):
        return lifted()
    path, _, leaf = lifted.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _part(
    index: int,
    value: Callable[[Sequence[Tensor]], Any],
    of: Sequence[Tensor | Callable[[], Tensor]],
) -> Tensor:
    weights = [one if isinstance(one, Tensor) else one() for one in of]
    return tree_flatten(value(weights))[0][index]


# Inductor takes oneDNN's fused operations for its own, with weights that it has packed. Under
# another name they are left alone, and take those that we have by their numbers.

_at_hand: ContextVar[list[Tensor] | None] = ContextVar("at_hand", default=None)
"""The packed weights of the block that this thread runs."""

_renaming = threading.Lock()


def _opaque(operation: Any, args: tuple[Any, ...]) -> Any:
    """One of oneDNN's operations by another name, for arguments like these."""
    place = 2 if "binary" in operation._schema.overload_name else 1
    with _renaming:  # a name is defined once
        return _renamed(operation, place, isinstance(args[place], list))


@cache
def _renamed(operation: Any, place: int, packed: bool) -> Any:
    """`operation`; if `packed`, it takes [number, output channels] as the argument at `place`, its
    weights."""
    library = _own_library()
    full_name, _, arguments = str(operation._schema).partition("::")[2].partition("(")
    name = full_name.replace(".", "_") + ("_packed" if packed else "")
    weight = operation._schema.arguments[place].name
    if packed:
        arguments = arguments.replace(f"Tensor {weight},", f"int[] {weight},")
    looks = partial(_looks_like, linear="linear" in name, place=place)

    def run(*args: Any) -> Tensor:
        if not packed:
            return operation(*args)
        weights = _at_hand.get()
        if weights is None:  # a compiler's trial, on zeros
            return looks(*args).zero_()
        return operation(*args[:place], weights[args[place][0]], *args[place + 1 :])

    library.define(f"{name}({arguments}")
    library.impl(name, run, "CPU")
    library.impl(name, looks, "Meta")
    return getattr(getattr(torch.ops, library.ns), name).default


@cache
def _own_library() -> torch.library.Library:
    """Of this module alone: a WebUI may import it anew, and what was recorded before then still
    takes the weights that are at hand here."""
    for number in count(1):
        name = f"latent_upscale_{number}"
        try:
            library = torch.library.Library(name, "DEF")
        except RuntimeError:  # there is one
            continue
        getattr(torch.ops, name).library = library  # it lives as long as they do
        return library
    raise AssertionError("as many as there are numbers")


def _looks_like(x: Tensor, *args: Any, linear: bool, place: int) -> Tensor:
    """What oneDNN's operations give, without its values."""
    weight = args[place - 1]
    channels = weight.shape[0] if isinstance(weight, Tensor) else weight[1]
    if linear:
        return x.new_empty((*x.shape[:-1], channels))
    n, _, height, width = x.shape
    return x.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)
