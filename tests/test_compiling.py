"""Compiled blocks: the same results, no job that waits, and failures that stop nothing."""

from __future__ import annotations

import copy
import gc
import importlib
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from lib_latent_upscale import Interrupted, compiling, recording
from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import winograd
from lib_latent_upscale.architectures.layers.constants import caches_of
from lib_latent_upscale.architectures.network import Network
from lib_latent_upscale.cache import Policy, UpscalerCache
from lib_latent_upscale.compiling import SIZES, Compilation, as_they_were
from lib_latent_upscale.engine import Engine
from lib_latent_upscale.inference import load
from lib_latent_upscale.recording import Recording
from lib_latent_upscale.weights import files

from . import published
from .published import relative_error

BUNDLED = files.MODEL_FOLDER / "compact-sd15-x2.safetensors"
HALFWAY = files.MODEL_FOLDER / "halfway-sd15.safetensors"
TARGET = (16, 16)
NETWORKS = ["DAT6x6", "SwinFIR4x6", "CRAFT7x6", "DRCTFIR12x6", "city96_x2.0", "ttl"]


def latent(*size: int) -> Tensor:
    return torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(sum(size)))


class Compiler:
    """In inductor's place: runs what was recorded, and can be held up or fail."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.error: Exception | None = None
        self.fails_at: dict[int, Exception] = {}
        """What the run of that number fails with, counted from 1."""
        self.functional = False
        """Whether it does what inductor does first: on tensors without values, all operations in
        place are replaced."""
        self.kinds: list[Any] = []
        self.runs = 0

    def __call__(self, recording: Recording) -> Callable[..., Any]:
        assert self.may_go_on.wait(20)
        if self.error is not None:
            raise self.error
        self.kinds.append(recording.kind)
        module = recording.module()
        if self.functional:
            with torch.no_grad():
                without = functionalize(module)
                module = make_fx(without, tracing_mode="fake")(*recording.examples())

        def function(*inputs: Tensor) -> Any:
            self.runs += 1
            if self.runs in self.fails_at:
                raise self.fails_at[self.runs]
            return module(*inputs)

        return function


class Clock:
    """In place of compiling's: what lies between every second question and the one before."""

    def __init__(self, *durations: float) -> None:
        self.durations = list(durations)
        self.now, self.began = 0.0, False

    def __call__(self, device: torch.device) -> float:
        if self.began:
            self.now += self.durations.pop(0)
        self.began = not self.began
        return self.now


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    fake = Compiler()
    monkeypatch.setattr(compiling, "compiled", fake)
    return fake


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def small(name: str) -> Network:
    network = from_state_dict(published.small_state_dict(name), **published.told(name))
    return network.requires_grad_(False)


def check_what_was_recorded(name: str, dtype: torch.dtype, compiler: Compiler) -> Network:
    """It is what the network computes, operations in place or not."""
    compiler.functional = True
    network = small(name).to(dtype)
    how = {"size": (24, 40)} if name == "ttl" else {}
    x, other = torch.randn(2, 1, 4, 16, 24).to(dtype)
    with torch.inference_mode():
        expected = network(x, **how), network(other, **how)
        compilation = Compilation(network, name, lambda line: None)
        assert relative_error(compilation.run(network, x, **how), expected[0]) < 1e-6
        until(lambda: compilation.ready)
        assert not compiler.runs
        result = compilation.run(network, other, **how)
    assert compiler.runs
    # oneDNN may take another kernel for a tensor that lies otherwise; torch before 2.2, which has
    # none that is fused, rounds ttl's results in bfloat16 by 0.014.
    half = 2e-2 if name == "ttl" and torch.__version__ < "2.2" else 1e-2
    assert relative_error(result, expected[1]) < (1e-5 if dtype == torch.float32 else half)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_recorded_is_what_the_network_computes(
    name: str, dtype: torch.dtype, compiler: Compiler
) -> None:
    check_what_was_recorded(name, dtype, compiler)
    if name in ("DAT6x6", "SwinFIR4x6", "CRAFT7x6"):  # of blocks of one kind
        assert len(set(compiler.kinds)) < len(compiler.kinds)


@pytest.mark.parametrize("piece", [winograd._IN_CACHE, 1])
@pytest.mark.parametrize("name", ["DAT6x6", "CRAFT7x6", "SwinFIR4x6", "DRCTFIR12x6", "ttl"])
def test_convolutions_by_fewer_products_are_recorded(
    name: str, piece: int, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of large latents, in one piece and in several."""
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_TOKENS", 1)
    monkeypatch.setattr(winograd, "_IN_CACHE", piece)
    network = check_what_was_recorded(name, torch.float32, compiler)
    made = [one for cache in caches_of(network) for one in cache.tensors() if one.dim() == 3]
    assert any(len(one) == 36 for one in made)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_is_as_eager() -> None:
    upscaler, log = load(BUNDLED), list[str]()
    x = latent(8, 8)
    expected = upscaler(x, TARGET)
    upscaler.compilation = Compilation(upscaler.network, upscaler.name, log.append, always=True)
    assert torch.equal(upscaler(x, TARGET), expected)
    until(lambda: bool(log))
    assert upscaler.compilation.ready, log
    assert "is compiled for its next jobs" in log[0]
    for batch in (x, 3 * x):
        compiled = upscaler(batch, TARGET)
        plain = upscaler.copied(torch.float32)(batch, TARGET)
        assert float((compiled - plain).norm() / plain.norm()) < 1e-4


def test_jobs_do_not_wait_for_the_compiler(compiler: Compiler) -> None:
    compiler.may_go_on.clear()
    upscaler, log = load(BUNDLED), list[str]()
    expected = upscaler(latent(8, 8), TARGET)
    upscaler.compile(log.append)
    for _ in range(3):
        assert torch.equal(upscaler(latent(8, 8), TARGET), expected)
    assert not log and not compiler.runs
    compiler.may_go_on.set()
    until(lambda: bool(log))
    upscaler(latent(8, 8), TARGET)
    assert compiler.runs == 10  # blocks


def test_a_compiler_that_fails_is_one_line_in_the_log(compiler: Compiler) -> None:
    compiler.error = RuntimeError("No working C++ compiler found\nin /usr/bin")
    upscaler, log = load(BUNDLED), list[str]()
    expected = upscaler(latent(8, 8), TARGET)
    upscaler.compile(log.append)
    for _ in range(2):
        assert torch.equal(upscaler(latent(8, 8), TARGET), expected)
        until(lambda: bool(log))
    assert log == [
        "compact-sd15 cannot be compiled and runs as it is: No working C++ compiler found"
    ]


def test_a_compiled_block_that_fails_is_run_as_it_is(compiler: Compiler) -> None:
    compiler.fails_at = {4: RuntimeError("no such symbol\nin kernel.so")}
    upscaler, log = load(BUNDLED), list[str]()
    expected = upscaler(latent(8, 8), TARGET)
    upscaler.compile(log.append)
    upscaler(latent(8, 8), TARGET)
    until(lambda: bool(log))
    log.clear()
    for _ in range(2):
        torch.testing.assert_close(upscaler(latent(8, 8), TARGET), expected)
    assert compiler.runs == 4  # and the other blocks of that job, and of the next, as they are
    assert log == ["compact-sd15 fails as it is compiled and runs as it is: no such symbol"]
    assert upscaler.compilation is not None and upscaler.compilation.failed


def test_a_model_that_failed_is_not_compiled_again(compiler: Compiler) -> None:
    compiler.fails_at = {1: RuntimeError("no such symbol")}
    log = list[str]()
    engine = Engine(UpscalerCache(), log=log.append)
    model = engine.cache.get(BUNDLED)
    expected = engine.upscale(model, latent(8, 8), TARGET)
    for compile in (True, True, False, True, True):
        result = engine.upscale(model, latent(8, 8), TARGET, compile=compile)
        torch.testing.assert_close(result, expected)
        until(lambda: bool(log))
    assert len(log) == 2 and "is compiled for" in log[0] and "fails as it is compiled" in log[1]
    assert compiler.runs == 1 and len(compiler.kinds) == 10


def test_too_little_memory_is_no_failure_of_the_compiler(compiler: Compiler) -> None:
    log = list[str]()
    engine = Engine(UpscalerCache(), log=log.append)
    model = engine.cache.get(BUNDLED)
    expected = engine.upscale(model, latent(8, 8), TARGET)
    engine.upscale(model, latent(8, 8), TARGET, compile=True)
    until(lambda: bool(log))
    compiler.fails_at = {3: RuntimeError("DefaultCPUAllocator: can't allocate memory")}
    result = engine.upscale(model, latent(8, 8), TARGET, compile=True)
    torch.testing.assert_close(result, expected)
    assert "ran out of memory" in log[1] and len(log) == 2
    assert compiler.runs == 3  # the next way is not compiled


@pytest.mark.parametrize(("compiled", "plain"), [(2.0, 3.0), (3.0, 2.0)])
def test_the_faster_way_is_kept(
    compiled: float, plain: float, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the best call of each; the first compiled one may be slow."""
    clock = Clock(9.0, plain, compiled, plain + 5)
    monkeypatch.setattr(compiling, "now", clock)
    upscaler, log = load(BUNDLED), list[str]()
    expected = upscaler(latent(8, 8), TARGET)
    upscaler.compile(log.append)
    upscaler(latent(8, 8), TARGET)
    until(lambda: bool(log))
    runs = []
    for _ in range(8):
        before = compiler.runs
        torch.testing.assert_close(upscaler(latent(8, 8), TARGET), expected)
        runs.append(compiler.runs > before)
    assert runs == [True, False, True, False] + 4 * [compiled < plain]
    assert clock.durations == [] and len(log) == 2
    which = "compiled" if compiled < plain else "as it is"
    assert log[1] == (
        f"compact-sd15 takes {compiled:.3g} s compiled at this size and {plain:.3g} s as it is: "
        f"it runs {which} from now on"
    )
    assert upscaler.compilation is not None and upscaler.compilation.ready


def test_an_interrupted_call_says_nothing_of_the_faster_way(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler, log = load(BUNDLED), list[str]()
    upscaler.compile(log.append)
    upscaler(latent(8, 8), TARGET)
    until(lambda: bool(log))
    clock = Clock(5.0, 2.0, 5.0, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "now", lambda device: 0.0)
        asked = iter([False] * 3 + [True] * 100)
        with pytest.raises(Interrupted):
            upscaler(latent(8, 8), TARGET, lambda: next(asked))
    monkeypatch.setattr(compiling, "now", clock)
    for _ in range(4):
        upscaler(latent(8, 8), TARGET)
    assert clock.durations == [] and log[1].endswith("it runs as it is from now on")


def test_few_sizes_are_compiled_and_each_by_itself(compiler: Compiler) -> None:
    upscaler, log = load(BUNDLED).compile(lambda line: None), list[str]()
    assert upscaler.compilation is not None
    sizes = [(8, 8 + extra) for extra in range(SIZES + 2)]
    for height, width in sizes:
        upscaler(latent(height, width), (2 * height, 2 * width))
    until(lambda: upscaler.compilation is not None and upscaler.compilation.ready)
    for height, width in sizes:
        before = compiler.runs
        upscaler(latent(height, width), (2 * height, 2 * width))
        log.append("compiled" if compiler.runs > before else "plain")
    assert log == ["compiled"] * SIZES + ["plain"] * 2


def test_an_interrupt_leaves_no_half_a_recording(compiler: Compiler) -> None:
    upscaler = load(BUNDLED).compile(lambda line: None)
    asked = iter([False] * 3 + [True] * 100)
    with pytest.raises(Interrupted):
        upscaler(latent(8, 8), TARGET, lambda: next(asked))
    assert upscaler.compilation is not None and not compiler.kinds
    upscaler(latent(8, 8), TARGET)
    until(lambda: upscaler.compilation is not None and upscaler.compilation.ready)
    with pytest.raises(Interrupted):  # between compiled blocks, too
        asked = iter([False] * 3 + [True] * 100)
        upscaler(latent(8, 8), TARGET, lambda: next(asked))
    assert 0 < compiler.runs < 10


def test_compiled_blocks_take_the_weights_of_the_moment(compiler: Compiler) -> None:
    upscaler = load(BUNDLED).compile(lambda line: None)
    upscaler(latent(8, 8), TARGET)
    until(lambda: upscaler.compilation is not None and upscaler.compilation.ready)
    # As a host does that moves a network away and back.
    for weight in upscaler.network.parameters():
        weight.data = weight.data.clone() * 0.5
    result = upscaler(latent(8, 8), TARGET)
    assert compiler.runs
    torch.testing.assert_close(result, upscaler.uncompile()(latent(8, 8), TARGET))


@pytest.mark.parametrize("name", NETWORKS)
def test_constants_are_those_of_the_weights_of_the_moment(name: str, compiler: Compiler) -> None:
    """Position biases, folded norms, packed weights; none is held when the network's are not."""
    network, x = small(name), torch.randn(1, 4, 16, 24)
    how = {"size": (24, 40)} if name == "ttl" else {}
    compilation = Compilation(network, name, lambda line: None)
    with torch.inference_mode():
        compilation.run(network, x, **how)
        until(lambda: compilation.ready)
        kept = [one for cache in caches_of(network) for one in cache.tensors()]
        assert kept or name in ("city96_x2.0", "ttl")  # which may keep none
        for weight in network.parameters():
            weight.data = weight.data.clone() * 1.25
        result = compilation.run(network, x, **how)
        assert compiler.runs
        as_they_were(network)
        assert relative_error(result, network(x, **how)) < 1e-5
    gone = [weakref.ref(one) for one in kept]
    del kept
    network.to(torch.bfloat16)
    gc.collect()
    assert not any(one() is not None for one in gone)


def test_imported_anew_it_takes_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the WebUI's "Reload UI" does, while jobs of before may still run."""

    def result(record: Any, network: Any, x: Tensor) -> tuple[Callable[[], Tensor], Tensor]:
        block = network.coarse[0]
        with torch.inference_mode():
            expected, recording = record(block.forward, block, (x,), {})
        module = recording.module()
        return lambda: recording.call(module, block, x), expected

    x = torch.randn(1, 8, 8, 64)
    old, expected = result(recording.record, load(HALFWAY).network, x)
    with monkeypatch.context() as anew:
        for name in [name for name in sys.modules if name.startswith("lib_latent_upscale")]:
            anew.delitem(sys.modules, name)
        again = importlib.import_module("lib_latent_upscale.recording")
        network = importlib.import_module("lib_latent_upscale").load(HALFWAY).network
        assert again is not recording and not isinstance(network, Network)
        new, same = result(again.record, network, x)
        with torch.inference_mode():
            assert torch.equal(new(), expected)
    with torch.inference_mode():
        assert torch.equal(old(), expected) and torch.equal(same, expected)


def test_a_copy_is_not_compiled(compiler: Compiler) -> None:
    upscaler = load(BUNDLED).compile(lambda line: None)
    upscaler(latent(8, 8), TARGET)
    twin = upscaler.copied(torch.bfloat16)
    assert twin.compilation is None
    for module in copy.copy(twin).network.modules():
        assert "forward" not in module.__dict__
    assert twin(latent(8, 8), TARGET).shape[-2:] == TARGET


def test_gradients_are_recorded_as_ever(compiler: Compiler) -> None:
    network = small("SwinFIR4x6")
    compilation = Compilation(network, "SwinFIR", lambda line: None)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    compilation.run(network, x).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize(("policy", "compiled"), [(Policy.KEEP, True), (Policy.OFFLOAD, False)])
def test_the_engine_compiles_what_is_kept(
    policy: Policy, compiled: bool, compiler: Compiler
) -> None:
    cache, log = UpscalerCache(policy), list[str]()
    engine, model = Engine(cache, log=log.append), cache.get(BUNDLED)
    x = latent(8, 8)
    expected = engine.upscale(model, x, TARGET, dtype=torch.bfloat16)
    engine.upscale(model, x, TARGET, dtype=torch.bfloat16, compile=True)
    if compiled:
        until(lambda: bool(log))
    again = engine.upscale(model, x, TARGET, dtype=torch.bfloat16, compile=True)
    assert bool(compiler.runs) is compiled
    assert float((again - expected).norm() / expected.norm()) < 1e-2
    runs = compiler.runs
    assert torch.equal(engine.upscale(model, x, TARGET, dtype=torch.bfloat16), expected)
    assert compiler.runs == runs


def test_the_engine_compiles_with_a_limit_of_the_users(compiler: Compiler) -> None:
    log = list[str]()
    cache = UpscalerCache()
    engine, model = Engine(cache, log=log.append), cache.get(BUNDLED)
    for _ in range(2):
        engine.upscale(model, latent(8, 8), TARGET, compile=True, limit=8 << 20)
        until(lambda: bool(log))
    assert compiler.runs


def test_two_threads_record_one_size_once(compiler: Compiler) -> None:
    upscaler, wrong = load(BUNDLED), list[object]()
    expected = upscaler(latent(8, 8), TARGET)
    upscaler.compile(lambda line: None)

    def work() -> None:
        for _ in range(4):
            if not torch.allclose(upscaler(latent(8, 8), TARGET), expected, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    until(lambda: upscaler.compilation is not None and upscaler.compilation.ready)
    assert len(compiler.kinds) == 10
