"""Loaded upscalers are kept, and loaded once."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lib_latent_upscale import WeightsError, cache
from lib_latent_upscale.cache import UpscalerCache
from lib_latent_upscale.inference import LatentUpscaler
from lib_latent_upscale.spaces import SD15, SDXL
from lib_latent_upscale.weights import files

BUNDLED = files.MODEL_FOLDER / "compact-sd15-x2.safetensors"


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


def test_a_second_use_costs_no_load(loads: list[Path]) -> None:
    kept = UpscalerCache()
    assert kept.get(BUNDLED) is kept.get(BUNDLED)
    assert loads == [BUNDLED]
    kept.clear()
    kept.get(BUNDLED)
    assert len(loads) == 2


def test_threads_wait_for_one_load(loads: list[Path]) -> None:
    kept = UpscalerCache()
    got: list[LatentUpscaler] = []
    threads = [threading.Thread(target=lambda: got.append(kept.get(BUNDLED))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(upscaler) for upscaler in got}) == 1


def test_the_least_recently_used_goes_first(loads: list[Path], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    paths = []
    for folder in folders:
        folder.mkdir()
        paths.append(Path(shutil.copy(BUNDLED, folder)))
    kept = UpscalerCache(limit=2)
    a, b, c = paths
    for path in (a, b, a, c, a):
        kept.get(path)
    assert loads == [a, b, c]
    kept.get(b)
    assert loads == [a, b, c, b]


def test_a_changed_file_is_loaded_anew(loads: list[Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(BUNDLED, tmp_path))
    kept = UpscalerCache()
    first = kept.get(path)
    path.touch()
    assert kept.get(path) is not first


def test_a_changed_sidecar_file_makes_a_changed_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(load_file(BUNDLED), path)  # without the metadata
    kept, beside = UpscalerCache(), path.with_suffix(".json")
    beside.write_text('{"space": "sd15"}', encoding="utf-8")
    assert kept.get(path).space is SD15
    beside.write_text('{"space": "sdxl"}', encoding="utf-8")
    os.utime(beside, ns=(0, 0))  # the clock of a file system may be coarse
    assert kept.get(path).space is SDXL
    beside.unlink()
    with pytest.raises(WeightsError, match="nothing tells which latent space"):
        kept.get(path)


def test_a_released_file_is_forgotten_and_no_other(loads: list[Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(BUNDLED, tmp_path))
    kept = UpscalerCache(limit=3)
    first, other = kept.get(path), kept.get(BUNDLED)
    path.touch()
    kept.get(path)  # two states of one file
    held = weakref.ref(first)
    del first
    kept.release(path)
    gc.collect()
    assert held() is None
    assert kept.get(BUNDLED) is other
    assert loads == [path, BUNDLED, path]
    kept.get(path)
    assert loads == [path, BUNDLED, path, path]
    kept.release(tmp_path / "nothing.safetensors")


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / BUNDLED.name
    path.write_bytes(b"broken")
    kept = UpscalerCache()
    for _ in range(2):
        with pytest.raises(WeightsError):
            kept.get(path)
    shutil.copy(BUNDLED, path)
    assert kept.get(path).name == "bundled-sd15"
