"""The commands list, fetch and verify."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.catalog import CATALOG, WeightFile
from lib_latent_upscale.cli import main
from lib_latent_upscale.console import bar
from lib_latent_upscale.weights import checking, files

from .misbehaving import Manner, MisbehavingServer


def tiny(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a very small city96 network."""
    torch.manual_seed(seed)
    return City96(channels=4, dim=4, depth=1, scale=2.0).to_state_dict()


def pickled(weights: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


SAFE = save(tiny())
SHA256 = hashlib.sha256(SAFE).hexdigest()
MANIFEST = checking.manifest({key: tuple(value.shape) for key, value in tiny().items()})
SIZE = sum(value.nbytes for value in tiny().values())


@pytest.fixture(autouse=True)
def catalogue(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three more models: a pickle without a published hash, a .safetensors, one that is gone."""
    model = CATALOG["city96-x2-sd15"]
    file = WeightFile("pickle.pth", server.base + "/pickle.pth", SIZE, manifest=MANIFEST)
    safe = WeightFile("safe.safetensors", server.base + "/safe.safetensors", len(SAFE), SHA256)
    gone = replace(file, name="gone.pth", url=server.base + "/gone.pth")
    for id, its in (("pickle", file), ("safe", safe), ("gone", gone)):
        entry = replace(model, id=id, label=f"Latent ({id})", file=its)
        monkeypatch.setitem(CATALOG, id, entry)  # type: ignore[misc]
    server.serve("/pickle.pth", pickled(tiny()))
    server.serve("/safe.safetensors", SAFE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models."""
    monkeypatch.delenv("LATENT_UPSCALE_MIRROR", raising=False)
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    status: int
    out: str
    error: str

    def row(self, id: str) -> Sequence[str]:
        """The cells of a model's row in the list."""
        (line,) = (line for line in self.out.splitlines() if line.startswith(f"{id}  "))
        return re.split(r" {2,}", line)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


class Run:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Done:
        self._capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        lines = said.err.replace("\r", "\n").splitlines(keepends=True)
        without_bars = (line for line in lines if line.strip() and "B/s]" not in line)
        return Done(status, said.out, "".join(without_bars))


# list


def test_list_shows_what_there_is_to_have(run: Run) -> None:
    done = run("list")
    assert (done.status, done.error) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["id", "label", "space", "factor", "MB", "licence", "here", "sha256"]
    assert [row.split()[0] for row in rows] == list(CATALOG)
    assert done.row("ttl-sdxl") == [
        "ttl-sdxl", "Latent (NNLatentUpscale SDXL)", "SDXL", "1 to 2", "25", "GPL-3.0", "no",
    ]  # fmt: skip
    assert done.row("bundled-sd15")[3:6] == ["1 to 2", "3", "AGPL-3.0-or-later"]
    assert done.row("compact-sd15")[3:6] == ["2", "2", "AGPL-3.0-or-later"]


def test_list_shows_what_is_here(run: Run, folder: Path) -> None:
    (folder / "safe.safetensors").write_bytes(SAFE)
    (folder / "gone.pth").write_bytes(bytes(7_400_000))
    done = run("list")
    assert done.row("safe")[-2:] == ["safe.safetensors", SHA256[:10]]
    assert done.row("gone")[4] == "7"
    assert done.row("gone")[-2] == "gone.pth"
    assert done.row("pickle")[-1] == "no"


def test_list_shows_what_has_begun(run: Run, folder: Path) -> None:
    (folder / ".fetching").mkdir()
    (folder / ".fetching" / "pickle.pth").write_bytes(bytes(3_000_000))
    assert run("list").row("pickle")[-1] == "3 MB of it"


def test_list_shows_what_was_put_here_by_hand(run: Run, folder: Path) -> None:
    save_file(tiny(), folder / "mine-sdxl.safetensors", {"scale": "1.5", "licence": "MIT"})
    (folder / "broken-sdxl.pth").touch()
    (folder / "unknown.safetensors").write_bytes(SAFE)
    done = run("list")
    assert done.status == 0
    digest = files.short_hash(folder / "mine-sdxl.safetensors")
    assert done.row("mine-sdxl.safetensors") == [
        "mine-sdxl.safetensors", "Latent (mine-sdxl)", "SDXL", "1.5", "0", "MIT",
        "mine-sdxl.safetensors", digest,
    ]  # fmt: skip
    assert done.error.count("\n") == 2
    assert "broken-sdxl.pth" in done.error
    assert "unknown.safetensors" in done.error


def test_list_shows_what_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "safe.safetensors").write_bytes(SAFE)
    (folder / "safe.safetensors").symlink_to(tmp_path / "safe.safetensors")
    assert run("list").row("safe")[-1] == "refused: verify says why"
    done = run("verify")
    assert done.status == 1
    assert "is a link to" in done.error


def test_another_folder_can_be_named(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "safe.safetensors").write_bytes(SAFE)
    assert run("list").row("safe")[-1] == "no"
    assert run("list", "--folder", tmp_path / "other").row("safe")[-1] == SHA256[:10]
    assert run("fetch", "--folder", tmp_path / "other", "pickle").status == 0
    assert (tmp_path / "other" / "pickle.safetensors").is_file()
    assert "pickle" in run("verify", "--folder", tmp_path / "other").out
    assert list(folder.iterdir()) == []


# fetch


def test_fetch_says_where_and_what(run: Run, folder: Path) -> None:
    done = run("fetch", "pickle", "safe")
    assert (done.status, done.error) == (0, "")
    kept = folder / "pickle.safetensors"
    assert done.out.splitlines() == [
        f"pickle: {kept}, sha256 {files.sha256(kept)}",
        f"safe: {folder / 'safe.safetensors'}, sha256 {SHA256}",
    ]
    assert torch.equal(load_file(kept)["sequential.0.bias"], tiny()["sequential.0.bias"])


def test_fetch_of_an_unknown_id_fetches_nothing(run: Run, server: MisbehavingServer) -> None:
    done = run("fetch", "pickle", "nonsense")
    assert done.status == 1
    assert done.error.startswith("error: nonsense: no such model; there are bundled-sd15, ")
    assert server.asked == []


def test_where_one_fails_the_others_arrive(run: Run, folder: Path) -> None:
    done = run("fetch", "gone", "safe")
    assert done.status == 1
    assert done.out.startswith("safe: ")
    assert (folder / "safe.safetensors").read_bytes() == SAFE
    assert done.error.startswith("error: gone could not be fetched: ")
    assert "answers 404" in done.error


def test_a_model_named_twice_is_fetched_once(run: Run, server: MisbehavingServer) -> None:
    assert run("fetch", "safe", "safe").out.count("safe: ") == 1
    assert run("fetch", "safe").status == 0
    assert len(server.asked) == 1
    assert run("fetch", "--again", "safe").status == 0
    assert len(server.asked) == 2


def test_sets_can_be_fetched(
    run: Run, monkeypatch: pytest.MonkeyPatch, server: MisbehavingServer
) -> None:
    sets = {"none": (), "recommended": ("safe", "pickle")}
    monkeypatch.setattr("lib_latent_upscale.preferences.SETS", sets)
    assert run("fetch", "none") == Done(0, "", "")
    assert run("fetch", "recommended", "pickle").out.count("sha256") == 2
    assert [one.path for one in server.asked] == ["/safe.safetensors", "/pickle.pth"]


def test_the_model_that_ships_is_not_fetched(run: Run) -> None:
    done = run("fetch", "bundled-sd15")
    assert done.status == 1
    assert "ships with this extension" in done.error


def test_a_changed_file_is_taken_only_where_that_is_said(
    run: Run, folder: Path, server: MisbehavingServer
) -> None:
    assert run("fetch", "pickle").status == 0
    kept = (folder / "pickle.safetensors").read_bytes()
    server.serve("/pickle.pth", pickled(tiny(seed=1)))
    done = run("fetch", "--again", "pickle")
    assert done.status == 1
    assert "no longer the one that was fetched first" in done.error
    assert "fetch --accept-changed pickle" in done.error
    assert (folder / "pickle.safetensors").read_bytes() == kept
    assert run("fetch", "--accept-changed", "pickle").status == 0
    assert (folder / "pickle.safetensors").read_bytes() != kept
    assert run("verify", "pickle").status == 0


def test_a_mirror_goes_before_the_published_address(
    run: Run, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve("/mirror/safe.safetensors", SAFE)
    server.serve("/environment/safe.safetensors", SAFE, Manner(status=404))
    run("fetch", "safe", "--mirror", server.base + "/mirror")
    assert [one.path for one in server.asked] == ["/mirror/safe.safetensors"]
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base + "/environment")
    assert run("fetch", "--again", "safe").status == 0
    assert [one.path for one in server.asked[1:]] == [
        "/environment/safe.safetensors",
        "/safe.safetensors",
    ]
    run("fetch", "--again", "safe", "--mirror", "")
    assert [one.path for one in server.asked[3:]] == ["/safe.safetensors"]


def test_the_bar_follows_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("quiet"):
        pass
    assert capsys.readouterr().err == ""
    with bar("model") as progress:
        for done, total in ((500, None), (700, 1000), (0, 1000), (1000, 1000)):
            progress(done, total)
    last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]
    assert last.startswith("model: 100%")
    assert "1.00k/1.00k" in last


# verify


def test_what_is_as_it_was_fetched_is_good(run: Run, folder: Path) -> None:
    run("fetch", "pickle", "safe")
    done = run("verify")
    assert (done.status, done.error) == (0, "")
    assert f"safe: safe.safetensors, sha256 {SHA256}, as published\n" in done.out
    digest = files.sha256(folder / "pickle.safetensors")
    assert f"pickle: pickle.safetensors, sha256 {digest}, as when it was fetched\n" in done.out
    assert "bundled-sd15: " in done.out
    assert "gone" not in done.out


def test_only_what_is_named_is_verified(run: Run, folder: Path) -> None:
    run("fetch", "pickle", "safe")
    (folder / "broken-sdxl.pth").touch()
    done = run("verify", "safe")
    assert (done.status, done.error) == (0, "")
    assert done.out.count("\n") == 1


@pytest.mark.parametrize(
    ("id", "name", "whose"),
    [
        ("safe", "safe.safetensors", "as published"),
        ("pickle", "pickle.safetensors", "as when it was fetched"),
    ],
)
def test_an_altered_byte_is_noticed(run: Run, folder: Path, id: str, name: str, whose: str) -> None:
    run("fetch", "pickle", "safe")
    altered = bytearray((folder / name).read_bytes())
    altered[-1] ^= 1
    (folder / name).write_bytes(altered)
    done = run("verify")
    assert done.status == 1
    assert done.error.startswith(f"error: {folder / name}: its sha256 is ")
    assert (
        f', {whose}. Get it anew: "python -m lib_latent_upscale fetch --again {id}"' in done.error
    )
    assert run("verify", id).status == 1
    assert run("fetch", "--again", id).status == 0
    assert run("verify").status == 0


def test_other_weights_under_a_fetched_name_are_noticed(run: Run, folder: Path) -> None:
    run("fetch", "pickle")
    save_file(tiny(seed=1), folder / "pickle.safetensors")
    done = run("verify", "pickle")
    assert done.status == 1
    assert "as when it was fetched" in done.error


def test_a_published_pickle_by_hand_is_good_and_its_hash_not_known(run: Run, folder: Path) -> None:
    (folder / "pickle.pth").write_bytes(pickled(tiny()))
    done = run("verify", "pickle")
    assert done.status == 0
    assert "none is known to compare" in done.out
    assert run("fetch", "--again", "pickle").status == 0
    (folder / "pickle.safetensors").unlink()  # and the hash of that one says nothing of the pickle
    done = run("verify", "pickle")
    assert done.status == 0
    assert "none is known to compare" in done.out


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({**tiny(), "sequential.9.weight": torch.ones(1)}, "pickle: "),
        (tiny() | {"sequential.0.bias": torch.full((4,), torch.nan)}, "NaN or infinite"),
        ({"other": torch.ones(1)}, "no weights of a latent upscaler known here"),
        (City96(channels=4, dim=8, depth=1, scale=2.0).to_state_dict(), "of another model"),
    ],
)
def test_wrong_weights_by_hand_under_a_published_name_are_noticed(
    run: Run, folder: Path, weights: dict[str, Tensor], message: str
) -> None:
    (folder / "pickle.pth").write_bytes(pickled(weights))
    done = run("verify")
    assert done.status == 1
    assert message in done.error
    assert "fetch --again pickle" in done.error


def test_a_damaged_file_is_noticed(run: Run, folder: Path) -> None:
    (folder / "pickle.pth").write_bytes(pickled(tiny())[:-100])
    done = run("verify")
    assert done.status == 1
    assert str(folder / "pickle.pth") in done.error


def test_hand_placed_files_are_verified(run: Run, folder: Path) -> None:
    save_file(tiny(), folder / "mine-sdxl.safetensors", {"scale": "1.5"})
    done = run("verify", "mine-sdxl.safetensors")
    assert done.status == 0
    assert done.out.startswith("mine-sdxl.safetensors: mine-sdxl.safetensors, sha256 ")
    weights = tiny() | {"sequential.0.bias": torch.full((4,), torch.inf)}
    save_file(weights, folder / "mine-sdxl.safetensors", {"scale": "1.5"})
    done = run("verify")
    assert done.status == 1
    assert "mine-sdxl.safetensors: " in done.error
    assert "NaN or infinite" in done.error
    assert "Get it anew" not in done.error


def test_problems_of_hand_placed_files_are_told(run: Run, folder: Path) -> None:
    save_file(tiny(), folder / "mine.safetensors", {"scale": "1.5"})
    (folder / "empty-sdxl.pth").touch()
    done = run("verify")
    assert done.status == 1
    assert "nothing tells which latent space" in done.error
    assert "empty-sdxl.pth" in done.error
    assert "bundled-sd15: " in done.out


def test_a_missing_bundled_file_is_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(files, "MODEL_FOLDER", tmp_path / "nothing")
    done = run("verify")
    assert done.status == 1
    assert done.error.startswith("error: bundled-sd15: ")
    assert "Install the extension anew" in done.error


def test_what_is_not_here_is_a_failure_only_where_it_is_named(run: Run) -> None:
    assert run("verify").status == 0
    done = run("verify", "pickle")
    assert done.status == 1
    assert "its weights are not in" in done.error


def test_verify_of_an_unknown_id(run: Run) -> None:
    done = run("verify", "nonsense")
    assert done.status == 1
    assert done.error.startswith("error: nonsense: no such model; there are ")


def test_damaged_records_of_hashes_are_noticed(run: Run, folder: Path) -> None:
    run("fetch", "pickle")
    (folder / "hashes.json").write_text("[]", encoding="utf-8")
    done = run("verify")
    assert done.status == 1
    assert "hashes.json" in done.error
    assert "Delete it to trust what is fetched next" in done.error
