"""A network's blocks compiled by torch's inductor, ahead of their use: no job ever waits for it.

The first job at a size runs as always while its blocks' operations are recorded. A thread of its
own then compiles each kind of block once, with the weights as inputs, for all blocks of that kind;
jobs run as before until all are ready. The next jobs tell whether that is worth it: in turn
compiled and as before, and then always in the faster way. Regional compilation, as in torch's
recipes, but on recorded operations: what Python decides on the way (sizes, constants, pieces) is
decided once, and nothing is guarded or compiled in a job's own thread.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .architectures.layers import chunks
from .architectures.network import Network
from .clock import now
from .memory import is_out_of_memory
from .recording import Recording, record

SIZES = 4
"""Latent sizes that a network is compiled for; at others it runs as it is."""

_LARGEST = 128 * 128
"""Pixels of the latents it is done for: a large one's time is in the products alone."""

_TRIALS = 2
"""Calls in each way that tell which is the faster one. The best of them count: the first may be
slow for reasons of its own, and other work runs beside."""


class Compilation:
    """What is compiled of one network, whose blocks ask here first from now on.

    Its blocks are the modules of the classes `network.block_types`, or itself if it names none.
    name, log: what is told, in one line each, of an end, a failure, and of what is the faster way.
    always: runs what is compiled even where that is not faster.
    """

    def __init__(
        self, network: Network, name: str, log: Callable[[str], None], *, always: bool = False
    ) -> None:
        self._name, self._log, self._always = name, log, always
        self._lock = threading.Lock()
        self._sizes: dict[Hashable, _Size] = {}
        self._failed = False
        self._local = threading.local()
        for block in _blocks(network):
            block.forward = _Block(block, self)

    def run(self, network: Callable[..., Tensor], x: Tensor, **how: Any) -> Tensor:
        """`network(x, **how)`: compiled if that is ready and not slower, else as it is, recorded
        at its first time."""
        if not self._wanted(x):
            return network(x, **how)
        key = (x.shape, x.dtype, x.device, tuple(how.items()), chunks.limit())
        with self._lock:
            size = self._sizes.get(key)
            records = size is None and len(self._sizes) < SIZES
            if records:
                size = self._sizes[key] = _Size(faster=True if self._always else None)
        if size is None:
            return network(x, **how)
        ready = size.ready and not self._failed
        on_trial = ready and size.faster is None
        compiled = ready and size.compiled_next
        self._local.call = _Call(size.steps, records, compiled)
        started = now(x.device) if on_trial else 0.0
        try:
            result = network(x, **how)
        except BaseException:
            if records:  # not to its end
                with self._lock:
                    self._sizes.pop(key, None)
            raise
        finally:
            del self._local.call
        if records:
            _compile_later(self, size)
        if on_trial and not self._failed:
            self._judge(size, compiled, now(x.device) - started)
        return result

    @property
    def ready(self) -> bool:
        """Whether all sizes that it was called for are compiled, and there are any."""
        with self._lock:
            sizes = list(self._sizes.values())
        return bool(sizes) and all(size.ready for size in sizes)

    @property
    def failed(self) -> bool:
        """Whether the compiler, or what it made, has failed: all runs as it is from then on."""
        return self._failed

    def _wanted(self, x: Tensor) -> bool:
        small = x.shape[-1] * x.shape[-2] <= _LARGEST
        return small and not self._failed and not torch.is_grad_enabled()

    def call(self, block: _Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block's call: the next one of the network's call that this thread is in."""
        call: _Call | None = getattr(self._local, "call", None)
        if call is None:
            return block.plain(*args, **kwargs)
        position = call.position
        call.position += 1
        if call.records:
            result, recording = record(block.plain, block.module, args, kwargs)
            call.steps.append(_Step(recording))
            return result
        if call.compiled and not self._failed:
            try:
                return call.steps[position].run(block.module, args, kwargs)
            except Exception as error:
                if is_out_of_memory(error):
                    raise  # who called may make room, and does not compile then
                self._fail("fails as it is compiled", error)
        return block.plain(*args, **kwargs)

    def compile(self, size: _Size) -> None:
        """Compiles all kinds of blocks of a size; run in the thread for it."""
        started = time.perf_counter()
        try:
            for step in size.steps:
                step.function = compiled(step.recording)
        except Exception as error:
            self._fail("cannot be compiled", error)
            return
        size.ready = True
        seconds = time.perf_counter() - started
        self._log(f"{self._name} is compiled for its next jobs at this size, in {seconds:.0f} s")

    def _judge(self, size: _Size, compiled: bool, seconds: float) -> None:
        """Takes in how long a call took; enough of them say how all others run."""
        with self._lock:
            size.seconds[compiled].append(seconds)
            if size.faster is not None or min(map(len, size.seconds.values())) < _TRIALS:
                return
            own, plain = min(size.seconds[True]), min(size.seconds[False])
            size.faster = own < plain
            if not size.faster:
                size.steps = []  # not cleared: another thread's call may be in them
        self._log(
            f"{self._name} takes {own:.3g} s compiled at this size and {plain:.3g} s as it is: "
            f"it runs {'compiled' if own < plain else 'as it is'} from now on"
        )

    def _fail(self, how: str, error: Exception) -> None:
        with self._lock:
            told, self._failed = self._failed, True
            self._sizes.clear()
        if not told:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._log(f"{self._name} {how} and runs as it is: {reason[:200]}")


@dataclass
class _Size:
    """One size of latents."""

    faster: bool | None
    """Whether it is faster compiled; None until that is known."""
    steps: list[_Step] = field(default_factory=list)
    """Its blocks' calls in order."""
    ready: bool = False
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """Of the network's calls compiled, and as it is, until `faster` is known."""

    @property
    def compiled_next(self) -> bool:
        if self.faster is not None:
            return self.faster
        return len(self.seconds[True]) <= len(self.seconds[False])


@dataclass
class _Call:
    """A network's call that goes on: the blocks' steps, and the number of those called so far."""

    steps: list[_Step]
    records: bool
    compiled: bool
    position: int = 0


class _Step:
    """One call of a block: its recording, and the compiled function of its kind."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.function: Callable[..., Any] | None = None

    def run(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.function is not None
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        return self.recording.call(self.function, block, *inputs)


class _Block:
    """A block's `forward`, by way of the compilation."""

    def __init__(self, module: nn.Module, compilation: Compilation) -> None:
        self._module = weakref.ref(module)
        self._compilation = compilation

    @property
    def module(self) -> nn.Module:
        module = self._module()
        assert module is not None
        return module

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        return type(module).forward(module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compilation.call(self, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Block:
        return self  # for `as_they_were`, which takes it off the copy


def as_they_were(network: nn.Module) -> None:
    """Takes a compilation off a network or the copy of one."""
    for module in network.modules():
        if isinstance(module.__dict__.get("forward"), _Block):
            del module.__dict__["forward"]


def _blocks(network: Network) -> list[nn.Module]:
    if not network.block_types:
        return [network]
    return [module for module in network.modules() if isinstance(module, network.block_types)]


def compiled(recording: Recording) -> Callable[..., Any]:
    """Inductor's function for a recording, already run once: the first run may compile, too.

    In the thread for it. Functions hold no weights, and are kept for other models and sizes.
    """
    kind = recording.kind
    function = _functions.pop(kind, None)
    if function is None:
        import torch._inductor

        with torch.no_grad():
            examples: list[Any] = recording.examples()
            function = torch._inductor.compile(recording.module(), examples)
            function(*recording.examples())
    _functions[kind] = function
    while len(_functions) > _KEPT:
        _functions.popitem(last=False)
    return function


_functions: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()
_KEPT = 64
_queue: queue.SimpleQueue[tuple[weakref.ref[Compilation], _Size]] = queue.SimpleQueue()
_worker: threading.Thread | None = None
_worker_lock = threading.Lock()


def _compile_later(compilation: Compilation, size: _Size) -> None:
    global _worker
    _queue.put((weakref.ref(compilation), size))
    with _worker_lock:
        if _worker is None or not _worker.is_alive():
            # A daemon: a process that wants to end does not wait for a compiler.
            _worker = threading.Thread(target=_work, name="latent-upscale-compile", daemon=True)
            _worker.start()


def _work() -> None:
    while True:
        reference, size = _queue.get()
        compilation = reference()
        if compilation is not None:
            compilation.compile(size)
        del compilation, size
