"""Models are loaded once, and their copies on a device stay or go by the rules."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lib_latent_upscale import WeightsError, cache
from lib_latent_upscale.architectures.layers import kernels
from lib_latent_upscale.cache import Model, PlainResidence, Policy, UpscalerCache, size
from lib_latent_upscale.inference import LatentUpscaler, load
from lib_latent_upscale.spaces import SD15, SDXL
from lib_latent_upscale.weights import files

BUNDLED = files.MODEL_FOLDER / "compact-sd15-x2.safetensors"
CPU, HALF = torch.device("cpu"), torch.bfloat16
LATENT = torch.linspace(-2, 2, 4 * 8 * 8).view(1, 4, 8, 8)


class Device(PlainResidence):
    """Stands in for a device: copies in half precision are "there", and it has so much room."""

    def __init__(self, free: int = 0, total: int = 1) -> None:
        self.free, self.total = free, total
        self.there: list[nn.Module] = []

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        if not any(one is network for one in self.there):
            self.there.append(network)

    def leave(self, network: nn.Module) -> None:
        self.there = [one for one in self.there if one is not network]

    def room(self, device: torch.device) -> tuple[int, int]:
        return self.free, self.total


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were loaded; each load takes a moment."""
    seen: list[Path] = []
    original = cache.load

    def load(path: Path) -> LatentUpscaler:
        seen.append(path)
        time.sleep(0.05)
        return original(path)

    monkeypatch.setattr(cache, "load", load)
    return seen


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three models, each in a folder of its own."""
    made = []
    for name in "abc":
        (tmp_path / name).mkdir()
        made.append(Path(shutil.copy(BUNDLED, tmp_path / name)))
    return made


@pytest.fixture
def cpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for a device where copies have to share the room with others."""
    monkeypatch.setattr(cache, "_CPU", torch.device("meta"))


def use(kept: UpscalerCache, model: Model) -> LatentUpscaler:
    with kept.use(model, CPU, HALF) as upscaler:
        upscaler(LATENT, (16, 16))
    return upscaler


def test_a_second_use_costs_no_load(loads: list[Path]) -> None:
    kept = UpscalerCache()
    assert kept.get(BUNDLED) is kept.get(BUNDLED)
    assert loads == [BUNDLED]
    kept.clear()
    kept.get(BUNDLED)
    assert len(loads) == 2


def test_threads_wait_for_one_load(loads: list[Path]) -> None:
    kept = UpscalerCache()
    got: list[Model] = []
    threads = [threading.Thread(target=lambda: got.append(kept.get(BUNDLED))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(model) for model in got}) == 1
    assert (kept.statistics().loads, kept.statistics().hits) == (1, 7)


def test_the_least_recently_used_model_goes_first(
    loads: list[Path], paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = UpscalerCache()
    a, b, c = paths
    monkeypatch.setattr(cache, "_CPU_BYTES", 2 * size(kept.get(a).upscaler.network))
    for path in (b, a, c, a):
        kept.get(path)
    assert loads == [a, b, c]
    assert set(kept.statistics().models) == {a, c}
    kept.get(b)
    assert loads == [a, b, c, b]


def test_one_model_stays_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CPU_BYTES", 1)
    kept = UpscalerCache()
    assert kept.get(BUNDLED) is kept.get(BUNDLED)


def test_a_changed_file_is_loaded_anew(paths: list[Path]) -> None:
    kept = UpscalerCache()
    first = kept.get(paths[0])
    paths[0].touch()
    assert kept.get(paths[0]) is not first


def test_a_changed_sidecar_file_makes_a_changed_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(load_file(BUNDLED), path)  # without the metadata
    kept, beside = UpscalerCache(), path.with_suffix(".json")
    beside.write_text('{"space": "sd15"}', encoding="utf-8")
    assert kept.get(path).upscaler.space is SD15
    beside.write_text('{"space": "sdxl"}', encoding="utf-8")
    os.utime(beside, ns=(0, 0))  # the clock of a file system may be coarse
    assert kept.get(path).upscaler.space is SDXL
    beside.unlink()
    with pytest.raises(WeightsError, match="nothing tells which latent space"):
        kept.get(path)


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / BUNDLED.name
    path.write_bytes(b"broken")
    kept = UpscalerCache()
    for _ in range(2):
        with pytest.raises(WeightsError):
            kept.get(path)
    assert not kept._loading  # a lock for each file that failed, for ever
    shutil.copy(BUNDLED, path)
    assert kept.get(path).upscaler.name == "compact-sd15"


def test_who_holds_a_model_can_use_it_when_the_file_has_gone(paths: list[Path]) -> None:
    kept = UpscalerCache()
    model = kept.get(paths[0])
    expected = model.upscaler(LATENT, (16, 16))
    paths[0].unlink()
    kept.release(paths[0])
    with kept.use(model) as upscaler:
        assert torch.equal(upscaler(LATENT, (16, 16)), expected)
    with pytest.raises(WeightsError, match="no such file"):
        kept.get(paths[0])


def test_release_lets_go_of_the_file(paths: list[Path]) -> None:
    kept = UpscalerCache()
    network = weakref.ref(kept.get(paths[0]).upscaler.network)
    other = kept.get(paths[1])
    paths[0].touch()
    kept.get(paths[0])  # two states of one file
    kept.release(paths[0])
    gc.collect()
    assert network() is None
    assert kept.statistics().models == (paths[1],)
    assert kept.get(paths[1]) is other
    kept.release(paths[0].with_name("nothing.safetensors"))


def test_the_exact_model_needs_no_copy() -> None:
    kept = UpscalerCache()
    model = kept.get(BUNDLED)
    with kept.use(model) as upscaler:
        assert upscaler is model.upscaler
    assert kept.statistics().copies == 0


def test_a_copy_leaves_the_exact_weights_alone() -> None:
    kept = UpscalerCache()
    model = kept.get(BUNDLED)
    before = model.upscaler(LATENT, (16, 16))
    copy = use(kept, model)
    assert copy.dtype == HALF and model.upscaler.dtype == torch.float32
    assert not torch.equal(copy(LATENT, (16, 16)), before)
    assert torch.equal(model.upscaler(LATENT, (16, 16)), before)


def test_a_small_copy_stays_whatever_the_memory() -> None:
    kept = UpscalerCache(residence=Device(free=0))
    model = kept.get(BUNDLED)
    assert use(kept, model) is use(kept, model)
    assert kept.statistics().copies == 1
    assert len(kept.residence.there) == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("cpu_is_a_device")
@pytest.mark.parametrize(("free", "stays"), [(60, True), (40, False)])
def test_a_large_copy_stays_while_half_of_the_memory_is_free(
    free: int, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SMALL", 0)
    kept = UpscalerCache(residence=Device(free, 100))
    model = kept.get(BUNDLED)
    use(kept, model)
    assert bool(model.copies) is stays
    assert bool(kept.residence.there) is stays  # type: ignore[attr-defined]


def test_large_copies_stay_on_the_cpu(
    loads: list[Path], paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells how much room it has, and the budget is for the GPU."""
    monkeypatch.setattr(cache, "_SMALL", 0)
    kept = UpscalerCache(budget=0)
    a, b = (kept.get(path) for path in paths[:2])
    first = use(kept, a)
    assert use(kept, a) is first
    use(kept, b)
    assert kept.statistics().copies == 2 and len(loads) == 2
    monkeypatch.setattr(cache, "_CPU_BYTES", size(first.network))  # of one: the latest
    use(kept, b)
    assert [bool(model.copies) for model in (a, b)] == [False, True]


@pytest.mark.usefixtures("cpu_is_a_device")
def test_copies_stay_within_the_budget(paths: list[Path]) -> None:
    device = Device()
    kept = UpscalerCache(residence=device)
    a, b, c = (kept.get(path) for path in paths)
    use(kept, a)
    (copy,) = a.copies.values()
    kept.budget = 2 * size(copy.network)
    for model in (b, a, c):
        use(kept, model)
    assert [bool(model.copies) for model in (a, b, c)] == [True, False, True]
    assert len(device.there) == 2
    kept.budget = 0
    use(kept, a)
    assert not any(model.copies for model in (a, b, c)) and not device.there


@pytest.mark.parametrize(
    ("policy", "copies", "models"),
    [(Policy.KEEP, 1, 1), (Policy.OFFLOAD, 0, 1), (Policy.UNLOAD, 0, 0)],
)
def test_what_becomes_of_a_copy_after_its_use(policy: Policy, copies: int, models: int) -> None:
    device = Device()
    kept = UpscalerCache(policy, residence=device)
    model = kept.get(BUNDLED)
    use(kept, model)
    assert len(model.copies) == len(device.there) == copies
    assert len(kept.statistics().models) == models


def test_a_device_can_be_left() -> None:
    device = Device()
    kept = UpscalerCache(residence=device)
    model = kept.get(BUNDLED)
    use(kept, model)
    kept.leave_device(torch.device("meta"))
    assert model.copies
    kept.leave_device(CPU)
    assert not model.copies and not device.there
    assert len(kept.statistics().models) == 1


@pytest.mark.usefixtures("cpu_is_a_device")
def test_a_copy_in_use_is_not_dropped() -> None:
    kept = UpscalerCache(budget=0, residence=Device())
    model = kept.get(BUNDLED)
    began, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with kept.use(model, CPU, HALF) as upscaler:
            began.set()
            go_on.wait(5)
            upscaler(LATENT, (16, 16))

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(5)
    kept.leave_device(CPU)
    kept.clear()
    assert model.copies
    go_on.set()
    thread.join()
    assert not model.copies  # nobody will ask for it again


def test_an_error_while_in_use_leaves_the_cache_working() -> None:
    kept = UpscalerCache(residence=Device())
    model = kept.get(BUNDLED)
    with pytest.raises(ZeroDivisionError), kept.use(model, CPU, HALF):
        raise ZeroDivisionError
    assert use(kept, model).dtype == HALF


@pytest.mark.usefixtures("cpu_is_a_device")
def test_many_threads_and_models(paths: list[Path]) -> None:
    kept = UpscalerCache(budget=0, residence=Device())
    expected = kept.get(paths[0]).upscaler.copied(HALF)(LATENT, (16, 16))
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                model = kept.get(paths[(number + turn) % 3])
                with kept.use(model, CPU, HALF) as upscaler:
                    if not torch.equal(upscaler(LATENT, (16, 16)), expected):
                        wrong.append(number)
                if turn == 3:
                    kept.clear()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_size_is_of_all_that_is_kept_for_its_weights() -> None:
    network = load(BUNDLED).network
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    assert size(network) == weights
    packs = kernels.usable(torch.ones(1))
    with torch.no_grad():
        network(torch.randn(1, network.channels, 8, 8))
    assert size(network) > 1.9 * weights if packs else size(network) == weights


def test_statistics_tell_the_bytes() -> None:
    kept = UpscalerCache(residence=Device())
    model = kept.get(BUNDLED)
    full = size(model.upscaler.network)
    assert kept.statistics().bytes == {"cpu": full}
    use(kept, model)
    (copy,) = model.copies.values()
    assert size(copy.network) >= full // 2
    assert kept.statistics().bytes == {"cpu": full + size(copy.network)}
