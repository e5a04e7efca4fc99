"""Jobs finish: what does not fit is run in a smaller way, and the log says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_latent_upscale import Interrupted
from lib_latent_upscale.cache import Model, UpscalerCache
from lib_latent_upscale.engine import Engine
from lib_latent_upscale.weights import files

BUNDLED = files.MODEL_FOLDER / "compact-sd15-x2.safetensors"
LATENT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TARGET = (16, 16)


class Bench:
    """An engine with the bundled model, whose network can be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.freed: list[torch.device] = []
        self.cache = UpscalerCache()
        self.engine = Engine(self.cache, self.freed.append, self.log.append)
        self.model: Model = self.cache.get(BUNDLED)
        self.exact = self.model.upscaler(LATENT, TARGET)
        self._patch = monkeypatch
        self._forward = type(self.model.upscaler.network).forward

    def before_each_pass(self, act: Callable[[Tensor], Tensor | None]) -> None:
        """`act` sees what the network is given; what it returns is the result, if anything."""

        def forward(network: Any, x: Tensor) -> Tensor:
            result = act(x)
            return self._forward(network, x) if result is None else result

        self._patch.setattr(type(self.model.upscaler.network), "forward", forward)

    def upscale(self, **how: Any) -> Tensor:
        return self.engine.upscale(self.model, LATENT, TARGET, **how)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def out_of_memory(times: int) -> Callable[[Tensor], None]:
    left = [times]

    def act(_: Tensor) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return act


def test_a_model_runs_as_it_is(bench: Bench) -> None:
    assert torch.equal(bench.upscale(), bench.exact)
    assert not bench.log and not bench.freed


def test_half_precision_is_near(bench: Bench) -> None:
    result = bench.upscale(dtype=torch.bfloat16)
    assert result.dtype == LATENT.dtype
    error = (result - bench.exact).norm() / bench.exact.norm()
    assert 0 < error < 2e-2
    assert not bench.log


def test_out_of_memory_frees_and_tries_again(bench: Bench) -> None:
    bench.before_each_pass(out_of_memory(1))
    result = bench.upscale(dtype=torch.bfloat16)
    assert torch.isfinite(result).all()
    (line,) = bench.log
    assert "compact-sd15" in line and "out of memory" in line and "small pieces" in line
    assert bench.freed == [torch.device("cpu")]


def test_out_of_memory_leaves_the_device_of_other_copies(bench: Bench) -> None:
    bench.upscale(dtype=torch.bfloat16)
    assert bench.model.copies
    bench.before_each_pass(out_of_memory(1))
    bench.upscale()
    assert not bench.model.copies


def test_nothing_that_fits_is_an_error_that_says_so(bench: Bench) -> None:
    bench.before_each_pass(out_of_memory(100))
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.upscale()
    bench.before_each_pass(lambda x: None)
    assert torch.equal(bench.upscale(), bench.exact)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError(
            "Could not allocate tensor with 8 bytes. There is not enough GPU video memory"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    ],
)
def test_every_devices_way_to_say_it_is_known(bench: Bench, error: Exception) -> None:
    raised = []

    def act(_: Tensor) -> None:
        if not raised:
            raised.append(error)
            raise error

    bench.before_each_pass(act)
    bench.upscale()
    assert len(bench.log) == 1


def test_another_error_is_not_taken_for_it(bench: Bench) -> None:
    def act(_: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    bench.before_each_pass(act)
    with pytest.raises(RuntimeError, match="mat1"):
        bench.upscale()
    assert not bench.log


def overflow_in_half(x: Tensor) -> Tensor | None:
    if x.dtype == torch.float32:
        return None
    return x.new_full((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), torch.inf)


def test_an_overflow_is_run_in_float32_and_remembered(bench: Bench) -> None:
    passes: list[torch.dtype] = []

    def act(x: Tensor) -> Tensor | None:
        passes.append(x.dtype)
        return overflow_in_half(x)

    bench.before_each_pass(act)
    for _ in range(2):
        assert torch.equal(bench.upscale(dtype=torch.float16), bench.exact)
    assert passes == [torch.float16, torch.float32, torch.float32]
    (line,) = bench.log
    assert "overflows in torch.float16" in line and "float32 from now on" in line


def test_a_precision_without_kernels_is_run_in_float32_and_remembered(bench: Bench) -> None:
    passes: list[torch.dtype] = []

    def act(x: Tensor) -> None:
        passes.append(x.dtype)
        if x.dtype == torch.float16:
            raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    bench.before_each_pass(act)
    for _ in range(2):
        assert torch.equal(bench.upscale(dtype=torch.float16), bench.exact)
    assert passes == [torch.float16, torch.float32, torch.float32]
    assert len(bench.log) == 1 and "float32 from now on" in bench.log[0]


@pytest.mark.parametrize(
    "words",
    [
        "The operator 'aten::_fft_r2c' is not currently implemented for the MPS device",
        "Could not run 'aten::view_as_complex' with arguments from the 'PrivateUse1' backend.",
    ],
)
def test_a_device_without_an_operation_leaves_it_to_the_cpu(bench: Bench, words: str) -> None:
    """In float32; "meta" stands in for the device."""
    passes: list[str] = []

    def act(x: Tensor) -> None:
        passes.append(x.device.type)
        if x.device.type == "meta":
            raise NotImplementedError(f"{words}\nmore")

    bench.before_each_pass(act)
    for _ in range(2):
        passes.clear()
        assert torch.equal(bench.upscale(device=torch.device("meta")), bench.exact)
    assert passes == ["cpu"]  # not tried again
    (line,) = bench.log
    assert words[:50] in line and "on the CPU from now on" in line and "more" not in line


def test_an_estimate_that_fails_stops_no_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(type(bench.model.upscaler), "working_bytes", fails)
    bench.before_each_pass(out_of_memory(3))  # until it comes to the CPU
    assert torch.equal(bench.upscale(device=torch.device("meta")), bench.exact)


def test_nan_that_came_in_is_no_overflow(bench: Bench) -> None:
    latent = LATENT.clone()
    latent[0, 0, 0, 0] = torch.nan
    result = bench.engine.upscale(bench.model, latent, TARGET, dtype=torch.bfloat16)
    assert torch.isnan(result).any()
    assert not bench.log


def test_an_interrupt_is_passed_on(bench: Bench) -> None:
    with pytest.raises(Interrupted):
        bench.upscale(should_stop=lambda: True)
    assert torch.equal(bench.upscale(), bench.exact)


def test_a_file_that_vanishes_in_a_job_does_no_harm(bench: Bench) -> None:
    bench.cache.clear()
    assert torch.equal(bench.upscale(), bench.exact)


def test_what_changes_the_result_comes_late(bench: Bench) -> None:
    bench.before_each_pass(out_of_memory(2))
    bench.upscale()
    assert ["small pieces" in line for line in bench.log] == [True, False]
    assert "tiles, which changes the result" in bench.log[1]
