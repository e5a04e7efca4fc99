"""The models with their state, deleting and unloading them; and downloads in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lib_latent_upscale.cache import UpscalerCache
from lib_latent_upscale.catalog import CATALOG, WeightFile
from lib_latent_upscale.downloads import Download, Downloads, State
from lib_latent_upscale.shelf import Origin, Shelf, UnknownModelError
from lib_latent_upscale.weights import files, hand_placed
from lib_latent_upscale.weights.errors import FetchError, MissingWeightsError, WeightsError
from lib_latent_upscale.weights.fetching import Fetcher

from .misbehaving import Manner, MisbehavingServer
from .test_model_commands import SAFE, SHA256, tiny

SIZE = len(SAFE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def shelf(folder: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """With two more models in the catalogue, "safe" and "other", which can be fetched."""
    for id in ("safe", "other"):
        file = WeightFile(f"{id}.safetensors", f"{server.base}/{id}.safetensors", SIZE, SHA256)
        entry = replace(CATALOG["city96-x2-sd15"], id=id, label=f"Latent ({id})", file=file)
        monkeypatch.setitem(CATALOG, id, entry)  # type: ignore[misc]
        server.serve(f"/{id}.safetensors", SAFE)
    cache = UpscalerCache()
    return Shelf((folder, files.MODEL_FOLDER), (), Fetcher(folder, release=cache.release), cache)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_states_and_origins(shelf: Shelf, folder: Path) -> None:
    save_file(tiny(), folder / "mine-sdxl.safetensors", {"scale": "1.5"})
    with_mine = replace(shelf, hand_placed=hand_placed.scan([folder]).entries)
    items = {item.entry.id: item for item in with_mine.items()}
    assert list(items) == [*CATALOG, "mine-sdxl.safetensors"]
    assert (items["bundled-sd15"].origin, items["bundled-sd15"].present) == (Origin.BUNDLED, True)
    assert (items["safe"].origin, items["safe"].present) == (Origin.CATALOGUE, False)
    assert items["safe"].size == SIZE  # known before it is here
    mine = items["mine-sdxl.safetensors"]
    assert (mine.origin, mine.path) == (Origin.HAND_PLACED, folder / "mine-sdxl.safetensors")
    with pytest.raises(UnknownModelError, match="nothing: no such model; there are bundled-sd15"):
        shelf.item("nothing")


def test_a_link_that_leads_out_is_a_problem_and_no_model(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "safe.safetensors").write_bytes(SAFE)
    (shelf.folders[0] / "safe.safetensors").symlink_to(tmp_path / "safe.safetensors")
    item = shelf.item("safe")
    assert not item.present and "is a link to" in str(item.problem)
    assert shelf.delete("safe") == [shelf.folders[0] / "safe.safetensors"]
    assert (tmp_path / "safe.safetensors").read_bytes() == SAFE
    assert shelf.item("safe").problem is None


def test_what_is_loaded_and_unloaded(shelf: Shelf) -> None:
    assert shelf.cache is not None
    for id in ("safe", "other"):
        shelf.cache.get(shelf.fetch(id))
    assert set(shelf.item("safe").loaded) == {"cpu"}
    assert 0 < shelf.item("safe").loaded["cpu"] <= SIZE
    shelf.unload("safe")
    assert not shelf.item("safe").loaded and shelf.item("other").loaded
    shelf.unload()
    assert not shelf.item("other").loaded


def test_fetched_verified_and_deleted(shelf: Shelf, folder: Path) -> None:
    assert shelf.cache is not None
    with pytest.raises(MissingWeightsError):
        shelf.verify("safe")
    shelf.cache.get(shelf.fetch("safe"))
    assert (shelf.verify("safe").sha256, shelf.verify("safe").compared) == (SHA256, "as published")
    assert shelf.delete("safe") == [folder / "safe.safetensors"]
    assert not shelf.item("safe").present and not shelf.cache.loaded()
    assert shelf.delete("safe") == []
    assert shelf.fetch("safe").is_file()


def test_deleting_leaves_nothing_in_folders_that_had_nothing(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with_another = replace(shelf, folders=(*shelf.folders, tmp_path / "empty"))
    path = with_another.fetch("safe")
    assert with_another.delete("safe") == [path]
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_has_arrived_of_a_broken_download_is_deleted_too(shelf: Shelf, folder: Path) -> None:
    (folder / ".fetching").mkdir()
    (folder / ".fetching" / "safe.safetensors").write_bytes(SAFE[:1000])
    assert shelf.item("safe").arrived == 1000
    shelf.delete("safe")
    assert shelf.item("safe").arrived == 0


@pytest.mark.parametrize(
    ("id", "words"),
    [("bundled-sd15", "ships with"), ("mine-sdxl.safetensors", "by hand"), ("x", "no such model")],
)
def test_only_what_can_be_fetched_again_is_deleted(
    shelf: Shelf, folder: Path, id: str, words: str
) -> None:
    save_file(tiny(), folder / "mine-sdxl.safetensors", {"scale": "1.5"})
    with_mine = replace(shelf, hand_placed=hand_placed.scan([folder]).entries)
    with pytest.raises(WeightsError, match=words):
        with_mine.delete(id)
    assert (folder / "mine-sdxl.safetensors").is_file()
    assert files.find(CATALOG["bundled-sd15"]).is_file()


def test_the_bundled_file_stays_even_if_the_fetcher_is_asked(folder: Path) -> None:
    with pytest.raises(FetchError, match="cannot be fetched again"):
        Fetcher(files.MODEL_FOLDER).remove(CATALOG["bundled-sd15"])
    assert files.find(CATALOG["bundled-sd15"]).is_file()


# Downloads


def test_downloads_run_one_after_the_other(shelf: Shelf, server: MisbehavingServer) -> None:
    server.manners["/safe.safetensors"] = [Manner(stall=SIZE // 2), Manner()]
    downloads = Downloads(lambda: shelf)
    assert downloads.start("safe") == Download("safe", State.QUEUED, 0, SIZE)
    eventually(lambda: len(server.asked_for("/safe.safetensors")) == 1)
    downloads.start("other")
    time.sleep(0.3)
    other = downloads.get("other")
    assert other is not None and other.state is State.QUEUED and len(server.asked) == 1
    downloads.stop("safe")
    eventually(lambda: all(download.state.ended for download in downloads.all()))
    assert [(one.id, one.state) for one in downloads.all()] == [
        ("safe", State.STOPPED),
        ("other", State.DONE),
    ]
    assert shelf.item("other").present and not shelf.item("safe").present


def test_one_that_waits_can_be_stopped_and_started_anew(
    shelf: Shelf, server: MisbehavingServer
) -> None:
    server.manners["/safe.safetensors"] = [Manner(stall=SIZE // 2), Manner()]
    downloads = Downloads(lambda: shelf)
    for id in ("safe", "other"):
        downloads.start(id)
        eventually(lambda: len(server.asked_for("/safe.safetensors")) == 1)
    downloads.stop("other")
    again = downloads.start("other")  # at once, while the stopped one still ends
    assert again.state is State.QUEUED
    time.sleep(0.3)
    waiting = downloads.get("other")
    assert waiting is not None and waiting.state is State.QUEUED
    downloads.stop("safe")
    eventually(lambda: shelf.item("other").present)


def test_two_that_start_one_share_it(shelf: Shelf, server: MisbehavingServer) -> None:
    server.manners["/safe.safetensors"] = [Manner(delay=0.3)]
    downloads, threads = Downloads(lambda: shelf), []
    for _ in range(5):
        threads.append(threading.Thread(target=downloads.start, args=("safe",)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    eventually(lambda: [one.state for one in downloads.all()] == [State.DONE])
    assert len(server.asked) == 1


def test_what_goes_wrong_is_in_the_download(shelf: Shelf, server: MisbehavingServer) -> None:
    server.manners["/safe.safetensors"] = [Manner(status=404)]
    downloads = Downloads(lambda: shelf)
    downloads.start("safe")
    eventually(lambda: downloads.all()[0].state is State.FAILED)
    assert "answers 404" in str(downloads.all()[0].error)
    with pytest.raises(UnknownModelError):
        downloads.start("nothing")
    assert len(downloads.all()) == 1
