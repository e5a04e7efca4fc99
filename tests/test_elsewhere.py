"""Upscaling on a device that is not the CPU, with its own memory: `elsewhere`, a GPU's double."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_latent_upscale import Interrupted, LatentUpscaler
from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import spectral
from lib_latent_upscale.cache import Model, Policy, UpscalerCache
from lib_latent_upscale.engine import Engine
from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.weights import files

from . import elsewhere, published
from .elsewhere import DEVICE, THE_DEVICE

pytestmark = pytest.mark.skipif(
    not elsewhere.AVAILABLE, reason="this torch lets no Python register a device"
)

PUBLISHED = ("SwinFIR4x6", "DAT6x6", "CRAFT7x6", "DRCT12x6", "DRCTFIR12x6", "city96_x1.25", "ttl")
SIZE = (40, 46)
CACHES: list[UpscalerCache] = []


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """On the device, once the caches have left it."""
    yield
    while CACHES:
        CACHES.pop().clear()
    assert held() == 0


def held() -> int:
    gc.collect()
    return THE_DEVICE.held


def latent(height: int = 20, width: int = 23) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))


@cache
def small(name: str) -> LatentUpscaler:
    network = from_state_dict(published.small_state_dict(name), **published.told(name))
    return LatentUpscaler(network.requires_grad_(False), SD15, SD15.unet, name)


@cache
def here(name: str) -> Tensor:
    """What the CPU makes of it."""
    return small(name)(latent(), SIZE)


class Bench:
    """An engine with one model."""

    def __init__(self, name: str, policy: Policy = Policy.KEEP, budget: int | None = None) -> None:
        self.log: list[str] = []
        self.cache = UpscalerCache(policy, budget)
        CACHES.append(self.cache)
        self.engine = Engine(self.cache, log=self.log.append)
        self.model = Model(Path(f"{name}.safetensors"), small(name).copied(torch.float32))
        self.cache._models[name] = self.model

    def job(self, x: Tensor, size: tuple[int, int] = SIZE, **how: object) -> Tensor:
        return self.engine.upscale(self.model, x, size, device=DEVICE, **how)  # type: ignore[arg-type]


def near(result: Tensor, expected: Tensor, most: float = 1e-5) -> None:
    assert published.relative_error(result.cpu(), expected) < most


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_give_there_what_they_give_here(
    name: str, dtype: torch.dtype, most: float
) -> None:
    result = Bench(name).job(latent().to(DEVICE), dtype=dtype)
    assert result.device == DEVICE and result.dtype == torch.float32
    near(result, here(name), most)


@pytest.mark.parametrize("path", sorted(files.MODEL_FOLDER.glob("halfway-*.safetensors")), ids=str)
def test_our_own_do_too(path: Path) -> None:
    cache = UpscalerCache()
    CACHES.append(cache)
    model = cache.get(path)
    x = torch.randn(1, model.upscaler.space.channels, 16, 20)
    for size in ((32, 40), (24, 31)):
        expected = model.upscaler(x, size)
        result = Engine(cache).upscale(model, x.to(DEVICE), size, device=DEVICE)
        near(result, expected)


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if small(name).network.scale in (2, None)]
)
def test_a_second_job_takes_nothing_to_the_device_and_waits_for_nothing(name: str) -> None:
    """The first one takes weights and constants; the result's check alone is waited for."""
    bench, x = Bench(name), latent().to(DEVICE)
    bench.job(x, dtype=torch.float16)
    with THE_DEVICE.watched():
        bench.job(x, dtype=torch.float16)
        assert THE_DEVICE.crossings == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_estimate_of_memory_is_what_a_job_takes(name: str) -> None:
    bench, x = Bench(name), latent().to(DEVICE)
    bench.job(x)
    with THE_DEVICE.watched(), elsewhere.FusedAttention():
        before = held()
        bench.job(x)
        took = THE_DEVICE.peak - before
    estimate = small(name).working_bytes(x.shape, SIZE, torch.float32)
    assert 0.8 * took <= estimate <= 1.6 * took


def peak_of_a_job(name: str, x: Tensor, size: tuple[int, int]) -> int:
    with THE_DEVICE.watched():
        Bench(name).job(x, size)
        CACHES.pop().clear()
        return THE_DEVICE.peak


@pytest.mark.parametrize("name", ["DAT6x6", "SwinFIR4x6", "ttl"])
def test_a_job_finishes_however_little_memory_there_is(name: str) -> None:
    x = latent(32, 32)
    expected, there = small(name)(x, (64, 64)), x.to(DEVICE)
    most, at_rest = peak_of_a_job(name, there, (64, 64)), held()
    said = []
    for tenths in (10, 8, 6, 4, 2, 0):
        bench = Bench(name)
        # Its result, which is to be there, must find a place.
        memory = max(most * tenths // 10, at_rest + expected.nbytes)
        with THE_DEVICE.watched(memory):
            result = bench.job(there, (64, 64))
        near(result, expected)
        del result
        assert all("ran out of memory" in line for line in bench.log)
        said.append(len(bench.log))
        bench.cache.clear()
        assert held() == at_rest
    assert said[0] == 0 and said[-1] > 0  # at the end on the CPU


def test_nothing_of_a_try_that_failed_is_held_during_the_next() -> None:
    """Else two copies of the weights would be there at once, where not even one had room."""
    x = latent(32, 32).to(DEVICE)
    at_rest, memory = held(), peak_of_a_job("DAT6x6", x, (64, 64)) * 6 // 10
    bench, seen = Bench("DAT6x6"), []
    bench.engine._free = lambda device: seen.append(THE_DEVICE.held)
    with THE_DEVICE.watched(memory):
        bench.job(x, (64, 64))
    assert seen and set(seen) == {at_rest}


def test_little_memory_is_enough_in_pieces_or_in_tiles() -> None:
    x = latent(32, 32).to(DEVICE)
    bench, memory = Bench("ttl"), peak_of_a_job("ttl", x, (64, 64)) // 2
    with THE_DEVICE.watched(memory):
        near(bench.job(x, (64, 64)), small("ttl")(x.cpu(), (64, 64)))
    assert ["small pieces" in line for line in bench.log] == [True]
    x = latent(160, 160)[:1].to(DEVICE)
    bench, memory = Bench("SwinFIR4x6"), peak_of_a_job("SwinFIR4x6", x, (320, 320)) // 2
    with THE_DEVICE.watched(memory):
        result = bench.job(x, (320, 320)).cpu()
    assert ["tiles" in line for line in bench.log] == [False, True]
    assert published.relative_error(result, small("SwinFIR4x6")(x.cpu(), (320, 320))) < 0.5


def test_policies_say_what_stays() -> None:
    x = latent()
    for policy, stays in ((Policy.KEEP, True), (Policy.OFFLOAD, False), (Policy.UNLOAD, False)):
        bench = Bench("SwinFIR4x6", policy)
        bench.job(x)
        assert (held() > 0) is stays
        assert (str(DEVICE) in bench.cache.statistics().bytes) is stays
        bench.cache.leave_device(DEVICE)
        assert held() == 0


@pytest.mark.parametrize("name", ["DAT6x6", "DRCT12x6", "CRAFT7x6"])
def test_what_the_statistics_say_is_what_is_held(name: str) -> None:
    """Of DRCT's the greater part is position biases, with their masks."""
    bench = Bench(name)
    bench.job(latent(), dtype=torch.float16)
    told = bench.cache.statistics().bytes[str(DEVICE)]
    assert told <= held() < told + 200_000  # orders of windows on top


@pytest.mark.parametrize("name", ["DAT6x6", "DRCT12x6", "CRAFT7x6"])
def test_a_host_that_sends_the_weights_away_gets_all_of_the_memory(name: str) -> None:
    bench, x = Bench(name), latent()
    bench.job(x)
    (copy,) = bench.model.copies.values()
    copy.network.to("cpu")  # as the hosts' managers do
    assert held() < 200_000
    near(bench.job(x), here(name))


def test_a_budget_is_kept() -> None:
    bench = Bench("SwinFIR4x6", budget=1)
    near(bench.job(latent()), here("SwinFIR4x6"))
    assert held() == 0


def test_a_stopped_job_leaves_the_weights_alone_there() -> None:
    bench, x = Bench("DAT6x6"), latent()
    bench.job(x)
    before = held()
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Interrupted):
        bench.job(x, should_stop=stop)
    assert held() == before


def test_without_transforms_there_the_cpu_does_them() -> None:
    spectral._device_for.cache_clear()
    with THE_DEVICE.watched(lacking=("aten::_fft_r2c",)):
        bench = Bench("SwinFIR4x6")
        near(bench.job(latent()), here("SwinFIR4x6"))
        assert bench.log == []
        assert any(crossing.startswith("from") for crossing in THE_DEVICE.crossings)
    spectral._device_for.cache_clear()


def test_what_the_device_lacks_is_computed_on_the_cpu_from_then_on() -> None:
    bench = Bench("DAT6x6")
    with THE_DEVICE.watched(lacking=("aten::gelu",)):
        for _ in range(2):
            near(bench.job(latent(), dtype=torch.float16), here("DAT6x6"))
    assert ["float32" in bench.log[0], "on the CPU" in bench.log[1], len(bench.log)] == [1, 1, 2]
