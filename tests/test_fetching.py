"""Fetching models: checked, converted, and only then there."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.catalog import CATALOG, Entry, WeightFile
from lib_latent_upscale.weights import (
    checking,
    fetching,
    files,
    ledger,
    reading,
    transfer,
    writing,
)
from lib_latent_upscale.weights.errors import FetchError, MissingWeightsError, WeightsError
from lib_latent_upscale.weights.fetching import Fetcher, Patience, Stopped, arrived, obtain

from . import published
from .misbehaving import Manner, MisbehavingServer

ROOT = Path(__file__).resolve().parents[1]
CITY96 = CATALOG["city96-x2-sd15"]
PATIENCE = Patience(connect=2, stall=1, attempts=2, pause=0.01)


def tiny(seed: int = 0, dim: int = 8) -> dict[str, Tensor]:
    """A very small city96 network, with an entry that no one needs."""
    generator = torch.Generator().manual_seed(seed)
    sides = {"0": (dim, 4), "4": (dim, dim), "6": (4, dim)}
    tensors = {"sequential.0.num_batches_tracked": torch.tensor(5)}
    for index, (out, into) in sides.items():
        tensors[f"sequential.{index}.weight"] = torch.randn(out, into, 3, 3, generator=generator)
        tensors[f"sequential.{index}.bias"] = torch.randn(out, generator=generator)
    return tensors


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


PICKLE, OTHER_PICKLE = pickled(tiny()), pickled(tiny(seed=1))
SAFETENSORS = save(tiny())
MANIFEST = checking.manifest({key: tuple(value.shape) for key, value in tiny().items()})


def entry_of(file: WeightFile, id: str = "tiny") -> Entry:
    return replace(CITY96, id=id, file=file)


def pickle_entry(url: str, id: str = "tiny", **more: Any) -> Entry:
    """An entry of which no hash is published, as most are."""
    size = sum(value.nbytes for value in tiny().values())
    file = WeightFile(f"{id}.pth", url, size, manifest=MANIFEST)
    return entry_of(replace(file, **more), id)


def safetensors_entry(url: str, **more: Any) -> Entry:
    digest = hashlib.sha256(SAFETENSORS).hexdigest()
    return entry_of(replace(WeightFile("tiny.safetensors", url, len(SAFETENSORS), digest), **more))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def fetcher(folder: Path) -> Fetcher:
    return Fetcher(folder, patience=PATIENCE)


def loadable(folder: Path) -> list[str]:
    """The files that would be taken for weights."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in files.SUFFIXES)


def under_way(folder: Path) -> list[str]:
    """What lies about, ready to be resumed or forgotten."""
    everything = (path.name for path in (folder / ".fetching").iterdir())
    return sorted(name for name in everything if not name.endswith(".lock"))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file can have more bytes: what a full disk is like."""
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_kept(path: Path, source: bytes = PICKLE) -> None:
    """The whole of the published pickle is there, and where it is from."""
    weights = reading.read(path)
    expected = torch.load(io.BytesIO(source), weights_only=True)
    expected = {key: value for key, value in expected.items() if not key.endswith("_tracked")}
    assert weights.tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(weights.tensors[key], value, rtol=0, atol=0)
    assert weights.metadata["source_sha256"] == digest(source)


# What goes well


def test_a_safetensors_file_is_kept_byte_for_byte(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    path = fetcher.fetch(safetensors_entry(server.serve("/tiny.safetensors", SAFETENSORS)))
    assert path == folder / "tiny.safetensors"
    assert path.read_bytes() == SAFETENSORS
    assert under_way(folder) == []


def test_a_pickle_arrives_as_safetensors(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    path = fetcher.fetch(entry)
    check_kept(path)
    metadata = reading.read(path).metadata
    assert metadata["id"] == "tiny"
    assert metadata["source_url"] == entry.file.url
    assert metadata["licence"] == entry.licence
    assert loadable(folder) == ["tiny.safetensors"]
    assert under_way(folder) == []


@pytest.mark.parametrize("wrapper", [None, "params_ema"])
def test_a_converted_network_does_what_the_published_one_does(
    server: MisbehavingServer, fetcher: Fetcher, wrapper: str | None
) -> None:
    tensors = published.small_state_dict("SwinFIR4x6")
    derived = [key for key in tensors if "relative_position_index" in key or "attn_mask" in key]
    assert derived
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    content = pickled({wrapper: tensors} if wrapper else tensors)
    url = server.serve("/swinfir.pth", content)
    file = WeightFile("swinfir.pth", url, 8_000_000, manifest=checking.manifest(shapes))
    kept = reading.read(fetcher.fetch(replace(CATALOG["sudo-swinfir-4x6-sd15"], file=file)))
    assert kept.tensors.keys() == tensors.keys() - set(derived)
    x = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(from_state_dict(kept.tensors)(x), from_state_dict(tensors)(x))


def test_half_precision_stays_so(server: MisbehavingServer, fetcher: Fetcher) -> None:
    halved = {key: value.half() for key, value in tiny().items() if value.is_floating_point()}
    content = pickled(halved)
    entry = pickle_entry(server.serve("/tiny.pth", content), size=len(content) - 100)
    tensors = reading.read(fetcher.fetch(entry)).tensors
    assert {value.dtype for value in tensors.values()} == {torch.float16}


def test_what_is_there_is_not_fetched(server: MisbehavingServer, fetcher: Fetcher) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    assert fetcher.fetch(entry) == fetcher.fetch(entry)
    assert len(server.asked) == 1
    fetcher.fetch(entry, again=True)
    assert len(server.asked) == 2


def test_progress_is_told(server: MisbehavingServer, fetcher: Fetcher) -> None:
    told: list[tuple[int, int | None]] = []
    fetcher = replace(fetcher, progress=lambda *now: told.append(now))
    fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PICKLE)))
    assert told[-1] == (len(PICKLE), len(PICKLE))


def test_what_has_arrived_can_be_asked_for(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    content = pickled(tiny(dim=64))
    url = server.serve("/tiny.pth", content, Manner(cut=100_000), Manner(status=404))
    entry = pickle_entry(url, size=150_000)
    assert arrived(entry, folder) == 0
    with pytest.raises(FetchError):
        fetcher.fetch(entry)
    assert 80_000 < arrived(entry, folder) <= 100_000


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, lib_latent_upscale.weights.fetching\n"
        "assert not {'torch', 'numpy', 'requests', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# What is refused


class Hostile:
    """A pickle of this makes a folder when it is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def spoiled() -> dict[str, Tensor]:
    tensors = tiny()
    tensors["sequential.4.weight"][1, 2, 0, 0] = float("nan")
    return tensors


PAGE = b"<!DOCTYPE html>" + bytes(8_000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (PICKLE[:2000], "2000 bytes"),
        (bytes(2_000_000), "2000000 bytes"),
        (PICKLE[:-200], "damaged"),
        (PICKLE[:3000] + b"\0" + PICKLE[3001:], "damaged"),
        (PAGE, "damaged"),
        (pickle.dumps([0] * 8_000, protocol=2), "plain pickle"),
        (pickled(tiny(dim=9)), "another model"),
        (pickled(spoiled()), r"sequential\.4\.weight.*NaN"),
        (pickled({"other": torch.zeros(2000)}), "no weights of a latent upscaler"),
        (pickled([torch.zeros(2000)]), "holds a list"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_that_is_not_the_model_is_refused(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(FetchError, match=reason):
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", content)))
    assert len(server.asked) == 1
    assert loadable(folder) == under_way(folder) == []
    assert not (folder / "hashes.json").exists()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"git_blob": "0" * 40}, "git id"),
        ({"size": len(SAFETENSORS) + 1}, f"{len(SAFETENSORS)} bytes"),
        ({"size": len(SAFETENSORS) - 1}, f"{len(SAFETENSORS)} bytes"),
        ({"sha256": None, "manifest": "0" * 16}, "manifest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_as_published_is_refused(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, wrong: dict[str, Any], reason: str
) -> None:
    url = server.serve("/tiny.safetensors", SAFETENSORS)
    with pytest.raises(FetchError, match=reason):
        fetcher.fetch(safetensors_entry(url, **wrong))
    assert loadable(folder) == under_way(folder) == []


def test_the_right_hashes_are_accepted(
    server: MisbehavingServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "published").write_bytes(SAFETENSORS)
    blob = files.git_blob(tmp_path / "published")
    url = server.serve("/tiny.safetensors", SAFETENSORS)
    fetcher.fetch(safetensors_entry(url, git_blob=blob, manifest=MANIFEST))


def test_a_pickle_with_code_is_refused_and_not_run(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    content = pickled({**tiny(), "sequential.0.weight": Hostile(made)})
    with pytest.raises(FetchError, match="more than weights"):
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", content)))
    assert not made.exists()
    assert loadable(folder) == under_way(folder) == []


def test_a_web_page_is_called_one(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    manner = Manner(headers={"Content-Type": "text/html"})
    with pytest.raises(FetchError, match=r"127\.0\.0\.1.*web page"):
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PAGE, manner)))
    assert loadable(folder) == under_way(folder) == []


def test_a_page_without_a_type_is_called_one_too(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    page = b"<html>" + b"x" * (len(SAFETENSORS) - 6)
    with pytest.raises(FetchError, match="sha256"):
        fetcher.fetch(safetensors_entry(server.serve("/tiny.safetensors", page)))
    assert loadable(folder) == under_way(folder) == []


def test_a_model_that_ships_is_not_fetched(fetcher: Fetcher, folder: Path) -> None:
    with pytest.raises(FetchError, match="ships with"):
        fetcher.fetch(CATALOG["bundled-sd15"])
    assert not folder.exists()


# Where from


def test_the_second_address_is_tried(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    old = server.serve("/old.pth", PICKLE)
    entry = pickle_entry(server.base + "/gone.pth", fallback_url=old)
    path = fetcher.fetch(entry)
    check_kept(path)
    assert path.name == entry.file.kept_name
    assert recorded(folder)["tiny"]["url"] == old


def test_the_second_address_is_tried_when_the_first_has_another_file(
    server: MisbehavingServer, fetcher: Fetcher
) -> None:
    first = server.serve("/tiny.pth", pickled(spoiled()))
    check_kept(fetcher.fetch(pickle_entry(first, fallback_url=server.serve("/old.pth", PICKLE))))


def test_the_reasons_of_all_addresses_are_told(server: MisbehavingServer, fetcher: Fetcher) -> None:
    old = server.serve("/old.pth", PICKLE, Manner(status=500))
    with pytest.raises(FetchError, match=r"tiny could not.*404.*500"):
        fetcher.fetch(pickle_entry(server.base + "/gone.pth", fallback_url=old))


def test_one_reason_is_told_once(server: MisbehavingServer, fetcher: Fetcher) -> None:
    entry = pickle_entry(server.base + "/gone.pth", fallback_url=server.base + "/too.pth")
    with pytest.raises(FetchError) as error:
        fetcher.fetch(entry)
    assert str(error.value).count("the server answers 404") == 1
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("mirror", "path"),
    [
        ("/mirror", "/mirror/tiny.pth"),
        ("/mirror/", "/mirror/tiny.pth"),
        ("/get/{file}?as=file", "/get/tiny.pth?as=file"),
        ("/proxy/{url}", "/proxy/BASE/tiny.pth"),
    ],
)
def test_a_mirror_is_asked_first(
    server: MisbehavingServer, fetcher: Fetcher, mirror: str, path: str
) -> None:
    path = path.replace("BASE", server.base)
    server.serve(path, PICKLE)
    entry = pickle_entry(server.base + "/tiny.pth")
    check_kept(replace(fetcher, mirror=server.base + mirror).fetch(entry))
    assert [asked.path for asked in server.asked] == [path]


def test_a_mirror_is_asked_for_both_addresses(server: MisbehavingServer, fetcher: Fetcher) -> None:
    server.serve("/mirror/old.pth", PICKLE)
    entry = pickle_entry(server.base + "/tiny.pth", fallback_url=server.base + "/old.pth")
    check_kept(replace(fetcher, mirror=server.base + "/mirror").fetch(entry))
    assert [one.path for one in server.asked] == ["/mirror/tiny.pth", "/mirror/old.pth"]


@pytest.mark.parametrize(
    ("content", "manner"),
    [
        (PICKLE, Manner(status=403)),
        (PAGE, Manner(headers={"Content-Type": "text/html"})),
        (pickled(tiny(dim=9)), Manner()),
    ],
    ids=["refuses", "sends a page", "has another file"],
)
def test_a_mirror_that_fails_is_done_without(
    server: MisbehavingServer, fetcher: Fetcher, content: bytes, manner: Manner
) -> None:
    server.serve("/mirror/tiny.pth", content, manner)
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    path = replace(fetcher, mirror=server.base + "/mirror").fetch(entry)
    check_kept(path)
    assert reading.read(path).metadata["source_url"] == entry.file.url


@pytest.mark.parametrize(
    "mirror", ["nowhere", "ftp://127.0.0.1", "http://127.0.0.1:1", "http://[", "{url}"]
)
def test_a_mirror_that_is_none_is_done_without(
    server: MisbehavingServer, fetcher: Fetcher, mirror: str
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    check_kept(replace(fetcher, mirror=mirror).fetch(entry))


# The hashes of what was fetched


def recorded(folder: Path) -> dict[str, dict[str, str]]:
    content: dict[str, dict[str, str]] = json.loads((folder / "hashes.json").read_text())
    return content


def test_the_hash_of_the_first_download_is_kept(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    path = fetcher.fetch(entry)
    assert recorded(folder) == {
        "tiny": {
            "url": entry.file.url,
            "source_sha256": digest(PICKLE),
            "name": "tiny.safetensors",
            "sha256": digest(path.read_bytes()),
        }
    }


def test_a_later_download_that_differs_is_refused(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(), Manner(becomes=OTHER_PICKLE)))
    path = fetcher.fetch(entry)
    before = path.read_bytes(), recorded(folder)
    with pytest.raises(FetchError, match="--accept-changed tiny"):
        fetcher.fetch(entry, again=True)
    assert (path.read_bytes(), recorded(folder)) == before
    assert under_way(folder) == []


def test_a_deleted_file_does_not_make_another_one_right(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(), Manner(becomes=OTHER_PICKLE)))
    fetcher.fetch(entry).unlink()
    with pytest.raises(FetchError, match="--accept-changed tiny"):
        fetcher.fetch(entry)
    assert loadable(folder) == []


def test_a_change_can_be_accepted(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(), Manner(becomes=OTHER_PICKLE)))
    fetcher.fetch(entry)
    path = fetcher.fetch(entry, again=True, accept_changed=True)
    check_kept(path, OTHER_PICKLE)
    assert recorded(folder)["tiny"]["source_sha256"] == digest(OTHER_PICKLE)
    fetcher.fetch(entry, again=True)


def test_a_published_hash_cannot_be_overruled(server: MisbehavingServer, fetcher: Fetcher) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", OTHER_PICKLE), sha256=digest(PICKLE))
    with pytest.raises(FetchError, match="sha256"):
        fetcher.fetch(entry, again=True, accept_changed=True)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "5", '{"tiny": {}}', '{"tiny": "abc"}', '{"tiny": {"url": ""}}', "\xff"],
)
def test_damaged_hashes_are_told_before_anything_is_fetched(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, content: str
) -> None:
    folder.mkdir()
    (folder / "hashes.json").write_text(content, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"hashes\.json.*Delete it"):
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PICKLE)))
    assert server.asked == []


def test_the_hashes_change_whole_or_not_at_all(folder: Path) -> None:
    folder.mkdir()
    ledger.write(folder, "first", ledger.Record("", "", "", ""))
    before = (folder / "hashes.json").read_bytes()
    with small_files(20), pytest.raises(OSError):
        ledger.write(folder, "second", ledger.Record("", "", "", ""))
    assert (folder / "hashes.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["hashes.json"]


def test_models_that_arrive_together_are_all_recorded(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ledger.read

    def slow(folder: Path) -> dict[str, ledger.Record]:
        records = read(folder)
        time.sleep(0.03)  # for the others to read the same
        return records

    monkeypatch.setattr(ledger, "read", slow)
    ids = [f"model{index}" for index in range(4)]
    found = [pickle_entry(server.serve(f"/{id}.pth", PICKLE), id) for id in ids]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetcher.fetch, found))
    assert list(recorded(folder)) == ids


# The folder and its disk


def test_too_little_space_is_told_before_anything_is_fetched(
    server: MisbehavingServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 << 20))
    old = server.serve("/old.pth", PICKLE)
    with pytest.raises(FetchError, match=r"tiny needs 67 MB of disk space.*10 MB left") as error:
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PICKLE), fallback_url=old))
    assert "127.0.0.1" not in str(error.value)  # the server is not to blame
    assert server.asked == []


@pytest.mark.parametrize("place", ["file", "file/models", "/proc/models", "/dev/null"])
def test_a_folder_that_cannot_be_made_is_told(
    server: MisbehavingServer, fetcher: Fetcher, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    fetcher = replace(fetcher, folder=tmp_path / place)
    with pytest.raises(FetchError, match="cannot be written to"):
        fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PICKLE)))
    assert server.asked == []


def test_a_full_disk_is_told_and_not_blamed_on_the_server(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    old = server.serve("/old.pth", PICKLE)
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE), fallback_url=old)
    with small_files(5000), pytest.raises(FetchError, match=r"cannot be written to.*too large"):
        fetcher.fetch(entry)
    assert len(server.asked) == 1
    assert loadable(folder) == []
    check_kept(fetcher.fetch(entry))


@pytest.mark.parametrize("error", [SafetensorError("disk full"), OSError("disk full")])
def test_what_cannot_be_converted_for_now_need_not_be_loaded_again(
    server: MisbehavingServer,
    fetcher: Fetcher,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fails(*_: object) -> None:
        raise error

    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    with monkeypatch.context() as patch:
        patch.setattr(writing, "save", fails)
        with pytest.raises(FetchError, match="disk full"):
            fetcher.fetch(entry)
    assert arrived(entry, folder) == len(PICKLE)
    check_kept(fetcher.fetch(entry))
    assert [asked.headers.get("range") for asked in server.asked] == [None, f"bytes={len(PICKLE)}-"]


def test_what_a_killed_conversion_left_is_cleared_away(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: object) -> None:
        raise KeyboardInterrupt

    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as nobody does when killed
        with pytest.raises(KeyboardInterrupt):
            fetcher.fetch(entry)
    assert list((folder / ".fetching").rglob("*.safetensors"))
    check_kept(fetcher.fetch(entry))
    assert under_way(folder) == []


def test_what_is_kept_is_the_same_wherever_it_came_from(
    server: MisbehavingServer, fetcher: Fetcher
) -> None:
    """Its hash is written into pictures."""
    server.serve("/mirror/tiny.pth", PICKLE)
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    path = fetcher.fetch(entry)
    kept = {path.read_bytes()}
    for mirror in ("", server.base + "/mirror", "", server.base + "/mirror"):
        kept.add(replace(fetcher, mirror=mirror).fetch(entry, again=True).read_bytes())
    assert len(kept) == 1


def test_a_file_is_let_go_of_before_it_is_replaced(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(), Manner(becomes=OTHER_PICKLE)))
    first = fetcher.fetch(entry).read_bytes()
    let_go: list[tuple[Path, bytes]] = []
    fetcher = replace(fetcher, release=lambda path: let_go.append((path, path.read_bytes())))
    path = fetcher.fetch(entry, again=True, accept_changed=True)
    assert let_go == [(path, first)]
    assert path.read_bytes() != first


def test_a_file_that_is_still_mapped_is_waited_for(
    server: MisbehavingServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = os.replace
    refused: list[Path] = []

    def windows(source: Path, target: Path) -> None:
        if len(refused) < 2 and str(target).endswith(".safetensors"):
            refused.append(target)
            raise PermissionError("in use")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", windows)
    check_kept(fetcher.fetch(pickle_entry(server.serve("/tiny.pth", PICKLE))))
    assert len(refused) == 2


@pytest.mark.parametrize("garbage", [b"garbage", bytes(3000)])
@pytest.mark.parametrize("make", [pickle_entry, safetensors_entry])
def test_a_part_that_is_not_what_it_seems_is_fetched_anew(
    server: MisbehavingServer,
    fetcher: Fetcher,
    folder: Path,
    make: Callable[[str], Entry],
    garbage: bytes,
) -> None:
    content = PICKLE if make is pickle_entry else SAFETENSORS
    entry = make(server.serve("/file", content))
    part = folder / ".fetching" / entry.file.name
    part.parent.mkdir(parents=True)
    part.write_bytes(garbage)
    tag = f'"{hashlib.md5(content).hexdigest()}"'
    note = json.dumps({"url": entry.file.url, "validator": tag})
    part.with_name(part.name + ".json").write_text(note)
    path = fetcher.fetch(entry)
    asked = [asked.headers.get("range") for asked in server.asked]
    assert asked == [f"bytes={len(garbage)}-", None]
    if make is pickle_entry:
        check_kept(path)
    else:
        assert path.read_bytes() == content
    assert under_way(folder) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_a_refused_file_is_not_open_when_it_is_removed(
    server: MisbehavingServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would not remove it."""
    mapped: list[bool] = []

    def discard(part: Path) -> None:
        mapped.append(str(part) in Path("/proc/self/maps").read_text())
        transfer.discard(part)

    monkeypatch.setattr(fetching, "discard", discard)
    content = save(spoiled())
    entry = safetensors_entry(server.serve("/tiny.safetensors", content), sha256=digest(content))
    with pytest.raises(FetchError, match="NaN"):
        fetcher.fetch(entry)
    assert mapped == [False]


def test_a_link_out_of_the_folder_is_not_taken_for_the_file(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, tmp_path: Path
) -> None:
    folder.mkdir()
    (tmp_path / "mine").write_bytes(b"precious")
    (folder / "tiny.safetensors").symlink_to(tmp_path / "mine")
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    with pytest.raises(WeightsError, match="link"):
        fetcher.fetch(entry)
    check_kept(fetcher.fetch(entry, again=True))
    assert (tmp_path / "mine").read_bytes() == b"precious"


# Several at once, and sudden ends


SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload([__name__, "requests"])  # or each process would wait for them


def fetch_here(fetcher: Fetcher, entry: Entry, fatal_step: int = 0) -> None:
    """What the processes run. Dies before the `fatal_step`-th time that it touches a file."""
    torch.set_num_threads(1)
    steps = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        touches = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
        if touches and str(arguments[0]).startswith(str(fetcher.folder)):
            steps += 1
            if steps == fatal_step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    fetcher.fetch(entry, again=fatal_step < 0)


def test_threads_that_want_the_same_file_ask_once(
    server: MisbehavingServer, fetcher: Fetcher
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(delay=0.3)))
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: fetcher.fetch(entry), range(3)))
    check_kept(paths.pop())
    assert not paths
    assert len(server.asked) == 1


def test_processes_that_want_the_same_file_ask_once(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(delay=0.3)))
    processes = [SPAWN.Process(target=fetch_here, args=(fetcher, entry)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_kept(folder / "tiny.safetensors")
    assert len(server.asked) == 1


def test_waiting_for_another_can_be_stopped(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    (folder / ".fetching").mkdir(parents=True)
    end = time.monotonic() + 0.3
    with FileLock(str(folder / ".fetching" / "tiny.lock")), pytest.raises(Stopped, match="tiny"):
        replace(fetcher, should_stop=lambda: time.monotonic() > end).fetch(entry)
    assert time.monotonic() < end + 0.5
    assert server.asked == []
    check_kept(fetcher.fetch(entry))


def test_a_stop_asks_no_other_address(server: MisbehavingServer, fetcher: Fetcher) -> None:
    old = server.serve("/old.pth", PICKLE)
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE, Manner(delay=5)), fallback_url=old)
    end = time.monotonic() + 0.3
    with pytest.raises(Stopped, match="tiny: stopped"):
        replace(fetcher, should_stop=lambda: time.monotonic() > end).fetch(entry)
    assert [asked.path for asked in server.asked] == ["/tiny.pth"]


@pytest.mark.parametrize("make", [pickle_entry, safetensors_entry])
def test_a_process_may_die_at_every_step(
    server: MisbehavingServer, tmp_path: Path, make: Callable[[str], Entry]
) -> None:
    """Killed before each file that it opens, renames or removes, until it lives to the end."""
    content = PICKLE if make is pickle_entry else SAFETENSORS
    entry = make(server.serve("/file", content))
    for step in range(1, 100):
        fetcher = Fetcher(tmp_path / str(step), patience=PATIENCE)
        process = SPAWN.Process(target=fetch_here, args=(fetcher, entry, step))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        path = fetcher.folder / "tiny.safetensors"
        was_there = path.exists()
        assert not was_there or loadable(fetcher.folder) == ["tiny.safetensors"]
        assert fetcher.fetch(entry) == path
        assert (path.read_bytes() == content) or make is pickle_entry
        if make is pickle_entry:
            check_kept(path)
        assert under_way(fetcher.folder) == [] or was_there
    assert step > 10


def test_a_process_may_die_at_any_moment(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    content = pickled(tiny(dim=64))
    tensors = tiny(dim=64)
    manifest = checking.manifest({key: tuple(value.shape) for key, value in tensors.items()})
    url = server.serve("/tiny.pth", content, Manner(trickle=0.01, block=16384))
    entry = pickle_entry(url, size=150_000, manifest=manifest)
    moments = random.Random(0)
    for _ in range(12):
        process = SPAWN.Process(target=fetch_here, args=(fetcher, entry, -1))
        process.start()
        process.join(moments.uniform(0.01, 0.3))
        process.kill()
        process.join()
        if folder.is_dir() and loadable(folder):
            assert loadable(folder) == ["tiny.safetensors"]
            check_kept(folder / "tiny.safetensors", content)
    check_kept(fetcher.fetch(entry, again=True), content)
    assert loadable(folder) == ["tiny.safetensors"]


# obtain


def test_what_is_in_a_folder_is_found(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path, tmp_path: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    (tmp_path / "tiny.safetensors").touch()
    assert obtain(entry, [folder, tmp_path], fetcher) == tmp_path / "tiny.safetensors"
    assert server.asked == []


def test_what_is_nowhere_is_fetched(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    check_kept(obtain(entry, [folder], fetcher))


def test_nothing_is_fetched_unless_that_is_wanted(server: MisbehavingServer, folder: Path) -> None:
    with pytest.raises(MissingWeightsError):
        obtain(pickle_entry(server.serve("/tiny.pth", PICKLE)), [folder], None)
    assert server.asked == []


def test_a_bundled_model_that_is_gone_is_missing(fetcher: Fetcher, folder: Path) -> None:
    with pytest.raises(MissingWeightsError, match="ships with"):
        obtain(CATALOG["bundled-sd15"], [folder], fetcher)


def placed(folder: Path, content: bytes) -> Path:
    """A file that the user put there."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.pth"
    path.write_bytes(content)
    return path


def test_a_published_pickle_put_there_by_hand_is_converted(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    path, let_go = placed(folder, PICKLE), list[Path]()
    entry = pickle_entry(server.base + "/tiny.pth")
    entry = replace(entry, file=replace(entry.file, sha256=digest(PICKLE)))
    kept = obtain(entry, [folder], replace(fetcher, release=let_go.append))
    check_kept(kept)
    assert loadable(folder) == ["tiny.safetensors"]
    assert let_go == [kept, path]
    assert recorded(folder)["tiny"]["source_sha256"] == digest(PICKLE)
    assert obtain(entry, [folder], fetcher) == kept
    assert server.asked == []


def test_a_pickle_under_its_old_name_is_converted_too(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    path = placed(folder, PICKLE)
    entry = replace(
        pickle_entry("", fallback_url=server.base + "/tiny.pth"),
        file=replace(pickle_entry("").file, name="new.pth", fallback_url=server.base + "/tiny.pth"),
    )
    assert obtain(entry, [folder], fetcher) == folder / "new.safetensors"
    assert loadable(folder) == ["new.safetensors", path.name]


def test_a_pickle_without_a_hash_to_compare_is_converted_and_stays(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    path = placed(folder, PICKLE)
    entry = pickle_entry(server.serve("/tiny.pth", OTHER_PICKLE))
    kept = obtain(entry, [folder], fetcher)
    check_kept(kept)
    assert path.read_bytes() == PICKLE
    # It may be anyone's: a first download is not held to its hash.
    fetcher.fetch(entry, again=True)
    assert recorded(folder)["tiny"]["source_sha256"] == digest(OTHER_PICKLE)


@pytest.mark.parametrize(
    "content",
    [pickled(tiny(dim=9)), pickled(spoiled()), b"something else"],
    ids=["another model", "damaged", "no weights"],
)
def test_someones_own_file_under_a_published_name_stays(
    fetcher: Fetcher, folder: Path, content: bytes
) -> None:
    path = placed(folder, content)
    assert obtain(pickle_entry("http://127.0.0.1:1/tiny.pth"), [folder], fetcher) == path
    assert path.read_bytes() == content
    assert loadable(folder) == ["tiny.pth"]


def test_a_pickle_other_than_the_one_fetched_first_stays(
    server: MisbehavingServer, fetcher: Fetcher, folder: Path
) -> None:
    entry = pickle_entry(server.serve("/tiny.pth", PICKLE))
    fetcher.fetch(entry).unlink()
    path = placed(folder, OTHER_PICKLE)
    with pytest.raises(WeightsError, match="no longer the one"):
        fetcher.convert(entry, path)
    assert obtain(entry, [folder], fetcher) == path
    assert path.read_bytes() == OTHER_PICKLE
    assert recorded(folder)["tiny"]["source_sha256"] == digest(PICKLE)


def test_someones_own_pickle_stays(fetcher: Fetcher, folder: Path) -> None:
    path = placed(folder, PICKLE)
    own = pickle_entry("")
    own = replace(own, file=replace(own.file, url=None))
    assert obtain(own, [folder], fetcher) == path
    assert loadable(folder) == ["tiny.pth"]


@pytest.mark.parametrize("whose", ["nobody's", "another folder's"])
def test_a_pickle_elsewhere_stays(fetcher: Fetcher, tmp_path: Path, whose: str) -> None:
    path = placed(tmp_path / "elsewhere", PICKLE)
    entry = pickle_entry("http://127.0.0.1:1/tiny.pth")
    assert obtain(entry, [path.parent], None if whose == "nobody's" else fetcher) == path
    assert path.read_bytes() == PICKLE


def test_a_pickle_on_a_full_disk_stays(
    fetcher: Fetcher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise SafetensorError("disk full")

    monkeypatch.setattr(writing, "save", fails)
    path = placed(folder, PICKLE)
    assert obtain(pickle_entry("http://127.0.0.1:1/tiny.pth"), [folder], fetcher) == path
    assert loadable(folder) == ["tiny.pth"]


def test_a_pickle_that_another_process_has_converted_is_found_converted(
    fetcher: Fetcher, folder: Path
) -> None:
    path = placed(folder, PICKLE)
    entry = pickle_entry("http://127.0.0.1:1/tiny.pth")
    kept = fetcher.convert(entry, path)
    assert fetcher.convert(entry, path) == kept
    check_kept(kept)
