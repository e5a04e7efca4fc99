"""What a module computes, as a graph of torch's basic operations, recorded while it computes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from .architectures.layers.kernels import plain_weights

_Look = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True)
class Recording:
    """One call of a module.

    graph: the operations; its inputs are the call's tensors, then `lifted`; its output is a tuple
        of one tensor.
    """

    graph: fx.Graph
    _looks: tuple[_Look, ...]
    _lifted: tuple[str | Tensor, ...]

    def module(self) -> fx.GraphModule:
        """The graph as a module: what a compiler takes."""
        return fx.GraphModule({}, self.graph)

    @property
    def kind(self) -> Hashable:
        """The same for two calls that differ in their tensors' values alone."""
        return self.graph.python_code("self").src, self._looks

    def lifted(self, module: nn.Module) -> list[Tensor]:
        """The weights of `module`, and the constants, that the graph takes.

        Weights are the module's own of this moment: a host may have moved them meanwhile.
        """
        return [_attribute(module, one) if isinstance(one, str) else one for one in self._lifted]

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
    with recorder, plain_weights():
        result = function(*args, **kwargs)
    recorder.graph.output((recorder.nodes[result],))
    names = {id(value): name for name, value in module.named_parameters()}
    names.update((id(value), name) for name, value in module.named_buffers())
    lifted = tuple(names.get(id(tensor), tensor) for tensor in recorder.lifted)
    looks = tuple(
        (tuple(one.shape), one.stride(), one.dtype, one.device)
        for one in (*inputs, *recorder.lifted)
    )
    return result, Recording(recorder.graph, looks, lifted)


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes = WeakTensorKeyDictionary()
        self.lifted: list[Tensor] = []
        self._last_input: fx.Node | None = None
        self._inputs = 0
        for one in inputs:
            self._input(one)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = tree_map(self._node, (args, kwargs))
        node = self.graph.call_function(_opaque(func), *taken)
        if isinstance(result, Tensor):
            self.nodes[result] = node
        elif isinstance(result, (tuple, list)):
            for index, one in enumerate(result):
                if isinstance(one, Tensor):
                    self.nodes[one] = self.graph.call_function(operator.getitem, (node, index))
        return result

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
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


def _attribute(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


# Inductor takes oneDNN's fused operations for its own, with weights that it has packed. Under
# another name they are left alone.

_library: torch.library.Library | None = None
_names: dict[Any, Any] = {}


def _opaque(operation: Any) -> Any:
    if getattr(operation, "namespace", None) != "mkldnn":
        return operation
    if operation not in _names:
        _names[operation] = _renamed(operation)
    return _names[operation]


def _renamed(operation: Any) -> Any:
    global _library
    if _library is None:
        _library = torch.library.Library("latent_upscale", "FRAGMENT")
    schema = str(operation._schema).partition("::")[2]
    name = schema.partition("(")[0]
    plain = name.replace(".", "_")
    if not hasattr(torch.ops.latent_upscale, plain):
        _library.define(plain + schema[len(name) :])
        _library.impl(plain, lambda *args: operation(*args), "CPU")
        looks = partial(_looks_like, linear="linear" in name, binary="binary" in name)
        _library.impl(plain, looks, "Meta")
    return getattr(torch.ops.latent_upscale, plain).default


def _looks_like(x: Tensor, *args: Any, linear: bool, binary: bool) -> Tensor:
    """What oneDNN's operations give, on tensors without values."""
    weight = args[1] if binary else args[0]
    if linear:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    n, _, height, width = x.shape
    return x.new_empty((n, height, width, weight.shape[0])).permute(0, 3, 1, 2)
