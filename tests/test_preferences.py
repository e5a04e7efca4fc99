"""What the user wants, from wherever it was said."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_latent_upscale import preferences
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.preferences import Preferences, gather, saved_settings
from lib_latent_upscale.spaces import SPACES

VARIABLES = {
    "arguments": "COMMANDLINE_ARGS",
    "fetch": "LATENT_UPSCALE_FETCH",
    "folder": "LATENT_UPSCALE_MODELS",
    "mirror": "LATENT_UPSCALE_MIRROR",
    "path": "PYTHONPATH",
}
SETTINGS = {
    preferences.FETCH_KEY: "all",
    preferences.FETCH_ON_USE_KEY: False,
    preferences.FOLDER_KEY: "/settings",
    preferences.MIRROR_KEY: "https://settings",
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def say(monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    for name, value in said.items():
        monkeypatch.setenv(VARIABLES[name], value)


def test_the_sets_are_of_models_that_can_be_fetched() -> None:
    assert preferences.SETS["none"] == ()
    assert set(preferences.SETS["recommended"]) < set(preferences.SETS["all"])
    bundled = {"compact-sd15", "sharp-sd15", *(f"bundled-{space}" for space in SPACES)}
    assert CATALOG.keys() - set(preferences.SETS["all"]) == bundled
    assert all(CATALOG[id].file.url for id in preferences.SETS["all"])


def test_nothing_said_is_the_default() -> None:
    assert gather() == gather({}) == Preferences("recommended", True, "", "")


def test_the_settings_go_over_the_default() -> None:
    assert gather(SETTINGS) == Preferences("all", False, "/settings", "https://settings")


def test_the_environment_goes_over_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, fetch="none", folder="/environment", mirror="https://environment")
    assert gather(SETTINGS) == Preferences("none", False, "/environment", "https://environment")


@pytest.mark.parametrize(
    "arguments",
    [
        "--latent-upscale-fetch recommended",
        "--latent-upscale-fetch=recommended",
        "--xformers --latent-upscale-fetch recommended --port 7861",
        "--ckpt-dir 'a b' --latent-upscale-fetch 'recommended' stray words",
        "--latent-upscale-fetch none --latent-upscale-fetch recommended",
    ],
)
def test_the_command_line_goes_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    say(monkeypatch, fetch="none", arguments=arguments)
    assert gather(SETTINGS).fetch == "recommended"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--latent-upscale-fetch everything",
        "--latent-upscale-fetch",
        "--latent-upscale-fetch --xformers",
        "--latent-upscale-fetch ''",
        "--latent-upscale-fetch all 'a quote that does not end",
        "--latent-upscale-fetch all C:\\",
        "--latent-upscale all",
        "-- --latent-upscale-fetch-all",
    ],
)
def test_a_command_line_that_makes_no_sense_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    say(monkeypatch, fetch="none", arguments=arguments)
    assert gather().fetch == "none"


def test_an_environment_that_makes_no_sense_counts_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say(monkeypatch, fetch="everything", folder=" ", mirror="\t")
    assert gather(SETTINGS) == Preferences("all", False, "/settings", "https://settings")


@pytest.mark.parametrize("value", [None, 7, True, ["all"], {"all": 1}, "", "everything", " "])
def test_settings_that_make_no_sense_count_as_none(value: Any) -> None:
    said = dict.fromkeys(SETTINGS, value)
    wanted = gather(said)
    assert (wanted.fetch, wanted.fetch_on_use) == ("recommended", True)
    assert not isinstance(value, str) or wanted.folder == wanted.mirror == value.strip()
    assert isinstance(wanted.folder, str)
    assert isinstance(wanted.mirror, str)


def test_spaces_and_capitals_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, fetch=" None ", folder=" /models ")
    assert (gather().fetch, gather().folder) == ("none", "/models")


# Where the WebUI's settings lie


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A WebUI's folder with the extension in it, the working directory while it starts."""
    root = tmp_path / "webui"
    (root / "extensions" / "latent-upscale").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def config(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"from": str(path)}) if text is None else text, encoding="utf-8")
    return path


def found(webui: Path) -> Mapping[str, Any]:
    return saved_settings(webui / "extensions" / "latent-upscale")


def test_beside_the_folder_of_extensions(webui: Path) -> None:
    assert found(webui) == {}
    path = config(webui / "config.json")
    assert found(webui) == {"from": str(path)}


def test_in_the_folder_of_data(
    webui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(webui / "config.json")
    path = config(tmp_path / "my data" / "config.json")
    say(monkeypatch, arguments=f"--xformers --data-dir '{path.parent}'")
    assert found(webui) == {"from": str(path)}


@pytest.mark.parametrize("form", ["--ui-settings-file {}", "--ui-settings-file={}"])
def test_in_a_file_of_ones_own(
    webui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    config(webui / "config.json")
    config(tmp_path / "data" / "config.json")
    path = config(webui / "mine.json")
    say(monkeypatch, arguments=f"--data-dir {tmp_path / 'data'} " + form.format("mine.json"))
    assert found(webui) == {"from": str(path)}


def test_in_the_webuis_root_when_the_extension_lies_elsewhere(
    webui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(webui / "config.json")
    say(monkeypatch, path=os.pathsep.join([str(webui), "/somewhere/else"]))
    assert saved_settings(tmp_path / "far" / "away") == {"from": str(path)}
    say(monkeypatch, path=os.pathsep.join(["/somewhere/else", str(webui)]))  # the root is first
    assert saved_settings(tmp_path / "far" / "away") == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "\ufeff{}", "[" * 100_000])
def test_settings_that_cannot_be_read_are_none(webui: Path, text: str) -> None:
    config(webui / "config.json", text)
    assert found(webui) == {}


def test_other_settings_that_cannot_be_read_are_none(
    webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (webui / "config.json").write_bytes(b'{"a": "\xff"}')
    say(monkeypatch, arguments="--ui-settings-file extensions --data-dir")
    assert found(webui) == {}
    say(monkeypatch, arguments="--data-dir 'broken")
    assert found(webui) == {}


def test_the_saved_settings_are_those_that_count(webui: Path) -> None:
    config(webui / "config.json", json.dumps(SETTINGS))
    assert gather(found(webui)) == Preferences("all", False, "/settings", "https://settings")
