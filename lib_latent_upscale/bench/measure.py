"""What is measured: times side by side, operations, memory, and the machine's own rate."""

from __future__ import annotations

import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ..clock import now
from .networks import Model

_PRODUCT = 2048  # the side of the square matrices that show the machine's rate


@dataclass(frozen=True)
class Seconds:
    """What a call took."""

    wall: float
    cpu: float
    """Of all threads of this process: other processes' work is not in it, as it is in `wall`."""


def settle_allocator() -> None:
    """Has glibc keep the memory of tensors that are freed, as in a process that has run for long.

    In the first thread of a new one it gives them back to the system, to fetch them again page by
    page, until something large was allocated and freed. In other threads, where a WebUI's jobs
    run, it hardly does.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # the most that it goes by is 32 MB


def interleaved(calls: Sequence[Callable[[], Any]], repeats: int) -> list[list[Seconds]]:
    """What each of the calls took, in `repeats` rounds of one call each."""
    seconds: list[list[Seconds]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, seconds):
            taken.append(timed(call))
    return seconds


def timed(call: Callable[[], Any]) -> Seconds:
    """What a call takes, up to the end of what it started on an accelerator."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    device = result.device if isinstance(result, Tensor) else torch.device("cpu")
    return Seconds(now(device) - wall, time.process_time() - cpu)


def median(seconds: Sequence[Seconds]) -> float:
    """Of the wall clock's seconds."""
    return statistics.median(taken.wall for taken in seconds)


def ratio(slow: Sequence[Seconds], fast: Sequence[Seconds]) -> Seconds:
    """The medians of the rounds' ratios: what disturbs the machine disturbs a whole round."""
    rounds = list(zip(slow, fast))
    return Seconds(
        statistics.median(a.wall / b.wall for a, b in rounds),
        statistics.median(a.cpu / b.cpu for a, b in rounds),
    )


@dataclass(frozen=True)
class Product:
    """A large matrix product, as the measure of what a machine can do in a precision."""

    left: Tensor
    right: Tensor

    @classmethod
    def on(cls, device: str, dtype: torch.dtype) -> Product:
        left, right = torch.randn(2, _PRODUCT, _PRODUCT, device=device).to(dtype)
        return cls(left, right)

    def __call__(self) -> Tensor:
        return self.left @ self.right

    @property
    def operations(self) -> int:
        return 2 * _PRODUCT**3


def operations(model: Model, network: nn.Module, size: int) -> int:
    """Floating-point operations of one latent: matrix products, convolutions and attention.

    Counted on shapes alone. Fourier transforms, norms and activations are not counted.
    """
    shapes = copy.deepcopy(network).to("meta", torch.float32)
    in_place = {torch.ops.aten.baddbmm_: _added_in_place}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model.call(shapes, torch.empty(1, 4, size, size, device="meta"))
    return counter.get_total_flops()


def _added_in_place(into: Sequence[int], a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    """Of a batch of products that are added to a tensor, which torch knows only out of place."""
    batch, rows, inner = a
    return 2 * batch * rows * inner * b[-1]


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """How much more memory tensors take during a call than before it, at the most."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=_started):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _started(event: dict[str, Any]) -> float:
    return event["ts"]


def hardware(device: str) -> str:
    """The name of what the device is."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads, {capability}"
