"""What the user wants of downloads and folders, from wherever it was said.

Imports no torch: `install.py` asks here at every launch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .catalog import CATALOG, RECOMMENDED

SETS: Mapping[str, Sequence[str]] = {
    "none": (),
    "recommended": RECOMMENDED,
    "all": tuple(entry.id for entry in CATALOG.values() if entry.file.url),
}
"""The ids of the models that a launch fetches, by the name of the choice."""

FETCH_KEY = "latent_upscale_fetch"
FETCH_ON_USE_KEY = "latent_upscale_fetch_on_use"
FOLDER_KEY = "latent_upscale_model_folder"
MIRROR_KEY = "latent_upscale_mirror"

FETCH_ARGUMENT = "--latent-upscale-fetch"


@dataclass(frozen=True)
class Preferences:
    """fetch: a key of `SETS`. folder: the user's folder of models, or empty. mirror: see
    `weights.fetching.Fetcher`."""

    fetch: str = "recommended"
    fetch_on_use: bool = True
    folder: str = ""
    mirror: str = ""


def gather(settings: Mapping[str, Any] | None = None) -> Preferences:
    """By COMMANDLINE_ARGS, else environment variables, else the WebUI's settings.

    A value that makes no sense counts as not given: nothing here may end a launch.
    """
    settings = settings or {}

    def texts(variable: str, key: str) -> list[str]:
        values = (os.environ.get(variable), settings.get(key))
        return [value.strip() for value in values if isinstance(value, str) and value.strip()]

    wanted = [_argument(), *texts("LATENT_UPSCALE_FETCH", FETCH_KEY), "recommended"]
    return Preferences(
        fetch=next(choice.lower() for choice in wanted if choice.lower() in SETS),
        fetch_on_use=settings.get(FETCH_ON_USE_KEY, True) is not False,
        folder=next(iter(texts("LATENT_UPSCALE_MODELS", FOLDER_KEY)), ""),
        mirror=next(iter(texts("LATENT_UPSCALE_MIRROR", MIRROR_KEY)), ""),
    )


def saved_settings(extension: Path) -> Mapping[str, Any]:
    """The settings in the config.json of the WebUI that `extension` lies in; {} without one.

    extension: the extension's folder as the WebUI names it, with links in it left as they are.
    """
    options = _parse("--ui-settings-file", "--data-dir")
    places = [
        options.ui_settings_file,
        options.data_dir and Path(options.data_dir) / "config.json",
        extension.parent.parent / "config.json",
        *(Path(part) / "config.json" for part in _pythonpath()),
    ]
    for place in places:
        try:
            content = json.loads(Path(place).read_text(encoding="utf-8")) if place else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            return content
    return {}


def _argument() -> str:
    return str(_parse(FETCH_ARGUMENT).latent_upscale_fetch or "")


def _parse(*names: str) -> argparse.Namespace:
    """The values of these arguments in COMMANDLINE_ARGS; what is typed after launch.py cannot be
    seen from install.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs="?", default="")
    try:
        words = shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))
        return parser.parse_known_args(words)[0]
    except (ValueError, SystemExit):
        return parser.parse_args([])


def _pythonpath() -> list[str]:
    """The WebUI's root is the first entry while it runs install.py."""
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep)[:1] if part]
