"""install.py and preload.py, as the WebUIs run them."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_latent_upscale import first_launch, preferences
from lib_latent_upscale.catalog import CATALOG, RECOMMENDED
from lib_latent_upscale.weights import transfer
from lib_latent_upscale.weights.errors import WeightsError
from lib_latent_upscale.weights.fetching import Fetcher, under_way
from lib_latent_upscale.weights.transfer import Patience

from . import published
from .misbehaving import Manner, MisbehavingServer

ROOT = Path(__file__).resolve().parents[1]
FILES = [CATALOG[id].file for id in RECOMMENDED]
KEPT = {"SwinFIR4x6_mse_200k_1.5.safetensors", "SwinFIR4x6_mse_64k_sdxl.safetensors"}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FETCH", "MODELS", "MIRROR"):
        monkeypatch.delenv(f"LATENT_UPSCALE_{name}", raising=False)
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)


@cache
def swinfir() -> bytes:
    """What stands in for both recommended files."""
    file = io.BytesIO()
    torch.save(published.state_dict("SwinFIR4x6"), file)
    return file.getvalue()


def serve(server: MisbehavingServer, *manners: Manner) -> None:
    """Makes the server a mirror that has both, each answered in these manners."""
    for file in FILES:
        server.serve(f"/{file.name}", swinfir(), *manners)


# In a process of its own, in a copy of the extension


@dataclass(frozen=True)
class Launch:
    """What a run of install.py did."""

    status: int
    out: str
    error: str
    seconds: float


@dataclass(frozen=True)
class WebUI:
    """A WebUI's folder with a copy of this extension in it."""

    root: Path

    @property
    def extension(self) -> Path:
        return self.root / "extensions" / "latent-upscale"

    @property
    def models(self) -> Path:
        return self.extension / "models"

    def settings(self, **said: Any) -> None:
        (self.root / "config.json").write_text(json.dumps(said), encoding="utf-8")

    def launch(self, *arguments: str, python: tuple[str, ...] = (), **environment: str) -> Launch:
        """Runs install.py as A1111's launch_utils.run_extension_installer does."""
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *python, str(self.extension / "install.py"), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(self.root),
                "PIP_NO_INDEX": "1",  # a test installs nothing, whatever is missing here
                **environment,
            },
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Launch(done.returncode, done.stdout, done.stderr, time.perf_counter() - began)


@pytest.fixture
def webui(tmp_path: Path) -> WebUI:
    webui = WebUI(tmp_path / "webui")
    webui.models.mkdir(parents=True)
    for name in ("install.py", "preload.py"):
        shutil.copy(ROOT / name, webui.extension)
    shutil.copytree(
        ROOT / "lib_latent_upscale",
        webui.extension / "lib_latent_upscale",
        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
    )
    return webui


def assert_silent(launch: Launch) -> None:
    assert (launch.status, launch.out, launch.error) == (0, "", "")


def test_where_nothing_is_wanted_nothing_is_said_or_asked(
    webui: WebUI, server: MisbehavingServer
) -> None:
    webui.settings(latent_upscale_fetch="none", latent_upscale_mirror=server.base)
    assert_silent(webui.launch())
    webui.settings(latent_upscale_fetch="all", latent_upscale_mirror=server.base)
    assert_silent(webui.launch(LATENT_UPSCALE_FETCH="none"))
    assert_silent(webui.launch(COMMANDLINE_ARGS="--xformers --latent-upscale-fetch none"))
    assert server.asked == []
    assert list(webui.models.iterdir()) == []


def test_where_all_is_here_nothing_is_said_or_asked(
    webui: WebUI, server: MisbehavingServer, tmp_path: Path
) -> None:
    mine = tmp_path / "my models"
    mine.mkdir()
    (mine / FILES[0].name).touch()
    (webui.models / FILES[1].kept_name).touch()
    webui.settings(latent_upscale_model_folder=str(mine), latent_upscale_mirror=server.base)
    assert_silent(webui.launch())
    assert server.asked == []


def test_a_launch_with_nothing_to_do_loads_nothing_heavy(webui: WebUI) -> None:
    webui.settings(latent_upscale_fetch="none")
    launch = webui.launch(python=("-X", "importtime"))
    loaded = set(re.findall(r"\|\s+([\w.]+)$", launch.error, re.MULTILINE))
    assert "lib_latent_upscale.first_launch" in loaded
    heavy = {"torch", "numpy", "safetensors", "requests", "urllib3", "tqdm", "filelock"}
    assert not loaded & heavy
    assert launch.seconds < 4  # a tenth of that where nothing else runs


def test_the_recommended_models_are_fetched(webui: WebUI, server: MisbehavingServer) -> None:
    serve(server)
    launch = webui.launch(LATENT_UPSCALE_MIRROR=server.base)
    assert launch.status == 0
    assert launch.out.splitlines() == [
        f"Latent upscale: fetched {file.kept_name}" for file in FILES
    ]
    assert launch.error == ""
    assert {path.name for path in webui.models.glob("*.safetensors")} == KEPT
    weights = load_file(webui.models / FILES[0].kept_name)
    assert weights.keys() == published.weight_keys("SwinFIR4x6")
    assert_silent(webui.launch(LATENT_UPSCALE_MIRROR=server.base))
    assert len(server.asked) == 2


def test_weights_of_another_model_get_no_name(webui: WebUI, server: MisbehavingServer) -> None:
    other = io.BytesIO()
    torch.save({"a": torch.zeros(FILES[0].size // 4)}, other)
    server.serve(f"/{FILES[0].name}", other.getvalue())
    launch = webui.launch(LATENT_UPSCALE_MIRROR=server.base)
    assert (launch.status, launch.error) == (0, "")
    assert launch.out.startswith(f"Latent upscale: {RECOMMENDED[0]} could not be fetched: ")
    assert "no weights of a latent upscaler" in launch.out
    assert [path.name for path in webui.models.iterdir()] == [".fetching"]
    assert not list(webui.models.glob(".fetching/*.pth*"))


def test_a_dead_network_is_one_short_message_and_not_asked_again_for_a_day(
    webui: WebUI, server: MisbehavingServer
) -> None:
    launch = webui.launch(LATENT_UPSCALE_MIRROR="http://127.0.0.1:9/{file}")
    assert (launch.status, launch.error) == (0, "")
    assert launch.seconds < 10
    assert len(launch.out) < 500
    assert launch.out.startswith(
        f"Latent upscale: {RECOMMENDED[0]} could not be fetched: 127.0.0.1:9"
    )
    assert f"install.py --fetch {RECOMMENDED[0]}" in launch.out
    assert_silent(webui.launch(LATENT_UPSCALE_MIRROR=server.base))
    assert server.asked == []
    mark = webui.models / ".fetching" / "launch-failed"
    for hours in (25, -48):  # a day has gone by; a clock was wrong when it failed
        os.utime(mark, times=(time.time() - hours * 3600,) * 2)
        asked = len(server.asked)
        assert "could not be fetched" in webui.launch(LATENT_UPSCALE_MIRROR=server.base).out
        assert len(server.asked) > asked
    assert {one.path for one in server.asked} <= {f"/{name}" for name in FILES[0].local_names}


def test_a_linked_extension_finds_the_webuis_settings(
    webui: WebUI, server: MisbehavingServer, tmp_path: Path
) -> None:
    (tmp_path / "code" / "deep").mkdir(parents=True)
    shutil.move(webui.extension, tmp_path / "code" / "deep" / "latent-upscale")
    webui.extension.symlink_to(tmp_path / "code" / "deep" / "latent-upscale")
    webui.settings(latent_upscale_fetch="none")
    assert_silent(webui.launch(LATENT_UPSCALE_MIRROR=server.base, PYTHONPATH=""))
    assert server.asked == []


def test_by_hand_it_lists_what_the_webui_has(webui: WebUI, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILES[0].name).write_bytes(b"12345")
    webui.settings(latent_upscale_model_folder=str(tmp_path / "mine"))
    launch = webui.launch("--list")
    assert (launch.status, launch.error) == (0, "")
    (line,) = (line for line in launch.out.splitlines() if line.startswith(RECOMMENDED[0]))
    assert FILES[0].name in line


# In this process


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that launches in this process fetch into."""
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def launch(tmp_path: Path) -> None:
    assert first_launch.main(tmp_path / "extensions" / "latent-upscale", []) == 0


def test_a_server_that_stalls_is_given_up_soon(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: MisbehavingServer,
) -> None:
    given: list[dict[str, float]] = []

    def shorter(**seconds: float) -> Patience:
        given.append(seconds)
        return Patience(connect=0.5, stall=0.5, attempts=1)

    monkeypatch.setattr(transfer, "Patience", shorter)
    serve(server, Manner(stall=0))
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    began = time.perf_counter()
    launch(tmp_path)
    assert time.perf_counter() - began < 5
    assert "stalled" in capsys.readouterr().out
    assert (under_way(models) / "launch-failed").is_file()
    assert given[0]["connect"] <= 5
    assert given[0]["stall"] <= 10
    assert given[0]["attempts"] == 1


def test_a_slow_download_ends_in_time_and_goes_on_at_the_next_launch(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: MisbehavingServer,
) -> None:
    monkeypatch.setitem(first_launch._SECONDS, "recommended", 1.0)  # type: ignore[misc]
    serve(server, Manner(stall=1_000_000), Manner())
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    began = time.perf_counter()
    launch(tmp_path)
    assert time.perf_counter() - began < 4
    assert capsys.readouterr().out == (
        f"Latent upscale: {RECOMMENDED[0]} is not all here yet; the rest comes later\n"
    )
    assert not (under_way(models) / "launch-failed").exists()
    part = under_way(models) / FILES[0].name
    assert part.stat().st_size > 500_000
    monkeypatch.setitem(first_launch._SECONDS, "recommended", 60.0)  # type: ignore[misc]
    (models / FILES[1].name).touch()
    launch(tmp_path)
    assert capsys.readouterr().out == f"Latent upscale: fetched {FILES[0].kept_name}\n"
    assert int(server.asked[1].headers["range"][6:-1]) > 500_000


def test_a_success_forgets_the_failure(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = under_way(models) / "launch-failed"
    mark.parent.mkdir(parents=True)
    mark.touch()
    os.utime(mark, times=(0, 0))
    monkeypatch.setattr(Fetcher, "fetch", lambda fetcher, entry: models / entry.file.kept_name)
    launch(tmp_path)
    assert not mark.exists()


def test_damaged_records_of_hashes_are_told_once_a_day(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.mkdir()
    (models / "hashes.json").write_text("{", encoding="utf-8")
    launch(tmp_path)
    assert "hashes.json" in capsys.readouterr().out
    launch(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_to_is_one_message(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write_text("a file", encoding="utf-8")
    launch(tmp_path)
    out = capsys.readouterr().out
    assert f"{models} cannot be written to" in out
    assert out.count("Latent upscale: ") == 1


@pytest.mark.parametrize("error", [RuntimeError("boom"), WeightsError("boom"), OSError(28, "boom")])
def test_a_failure_of_ours_is_one_line_and_no_failure_of_the_launch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(preferences, "gather", fail)
    launch(tmp_path)
    out = capsys.readouterr().out
    assert out.startswith(f"Latent upscale: {type(error).__name__}: ")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["--list"], ["list", "--folder=/mine"]),
        (["--verify"], ["verify", "--folder=/mine"]),
        (
            ["--fetch", "recommended", "ttl-sd15"],
            ["fetch", "--folder=/mine", "--mirror=https://m", "recommended", "ttl-sd15"],
        ),
    ],
)
def test_by_hand_it_is_the_command_line_with_the_webuis_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], command: list[str]
) -> None:
    settings = {preferences.FOLDER_KEY: "/mine", preferences.MIRROR_KEY: "https://m"}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    given: list[list[str]] = []
    monkeypatch.setattr("lib_latent_upscale.cli.main", lambda got: given.append(got) or 7)
    extension = tmp_path / "extensions" / "latent-upscale"
    assert first_launch.main(extension, arguments) == 7
    assert given == [command]


def test_by_hand_a_failed_launch_does_not_count(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: MisbehavingServer,
) -> None:
    mark = under_way(models) / "launch-failed"
    mark.parent.mkdir(parents=True)
    mark.touch()
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    server.serve(f"/{FILES[0].name}", swinfir())
    assert first_launch.main(tmp_path, ["--fetch", RECOMMENDED[0]]) == 0
    assert FILES[0].kept_name in capsys.readouterr().out
    assert (models / FILES[0].kept_name).is_file()


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--list", "--verify"], ["--fetch"]])
def test_by_hand_nonsense_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        first_launch.main(tmp_path, arguments)


# Packages that the host lacks


@dataclass
class Pip:
    """Stands in for pip."""

    status: int = 0
    said: str = ""
    command: tuple[str, ...] = ()
    constraints: str = ""

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        assert not self.command
        self.command = tuple(command)
        self.constraints = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        return SimpleNamespace(returncode=self.status, stdout="", stderr=self.said)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    monkeypatch.setenv("LATENT_UPSCALE_FETCH", "none")
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def lack(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )


def test_only_what_is_missing_is_installed_and_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    lack(monkeypatch, "filelock", "tqdm")
    launch(tmp_path)
    assert pip.command[:4] == (sys.executable, "-m", "pip", "install")
    assert pip.command[-3:] == (pip.command[pip.command.index("-c") + 1], "filelock", "tqdm")
    lines = pip.constraints.splitlines()
    assert {f"{name}=={version(name)}" for name in ("torch", "numpy", "pytest")} <= set(lines)
    assert len(lines) >= len({one.metadata["Name"] for one in distributions()})
    assert len({line.partition("==")[0].lower() for line in lines}) == len(lines)
    assert capsys.readouterr().out == ""


def test_of_two_distributions_of_one_name_the_first_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip
) -> None:
    lack(monkeypatch, "tqdm")
    found = [
        SimpleNamespace(metadata={"Name": name}, version=version)
        for name, version in (("Some_Thing", "1.0"), ("some-thing", "2.0"), ("other", "3.0"))
    ]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    launch(tmp_path)
    assert pip.constraints.splitlines() == ["Some_Thing==1.0", "other==3.0"]


def test_where_nothing_is_missing_pip_does_not_run(tmp_path: Path, pip: Pip) -> None:
    launch(tmp_path)
    assert pip.command == ()


def test_what_cannot_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    lack(monkeypatch, "tqdm")
    pip.status, pip.said = 1, "WARNING: retrying\nERROR: no network " + "x" * 1000
    launch(tmp_path)
    out = capsys.readouterr().out
    assert out.startswith("Latent upscale: needs tqdm: ERROR: no network")
    assert len(out) < 400


# preload.py


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A WebUI's parser, after it has called our preload."""
    spec = importlib.util.spec_from_file_location("preload", ROOT / "preload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    module.preload(parser)
    return parser


@pytest.mark.parametrize("choice", preferences.SETS)
def test_the_webui_accepts_our_argument(parser: argparse.ArgumentParser, choice: str) -> None:
    words = [preferences.FETCH_ARGUMENT, choice]
    assert parser.parse_args(words).latent_upscale_fetch == choice
    assert parser.parse_args([]).latent_upscale_fetch is None


@pytest.mark.parametrize("words", [["everything"], []])
def test_the_webui_refuses_nonsense(
    parser: argparse.ArgumentParser, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args([preferences.FETCH_ARGUMENT, *words])
    assert preferences.FETCH_ARGUMENT in capsys.readouterr().err
