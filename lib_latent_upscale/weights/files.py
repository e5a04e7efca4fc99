"""Where the files of weights lie, and what they are told apart by.

Imports no torch: `install.py` asks here at every launch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..catalog import Entry
from .errors import MissingWeightsError, WeightsError

MODEL_FOLDER = Path(__file__).resolve().parents[2] / "models"
"""The extension's own."""

PICKLES = (".pth", ".pt")
SUFFIXES = (".safetensors", *PICKLES)

_BLOCK = 1 << 20


def model_folders(chosen: str | Path | None = None) -> tuple[Path, ...]:
    """Where weights lie: the user's folder, if there is one, then the extension's `models/`.

    chosen: the user's folder by the WebUI's settings; LATENT_UPSCALE_MODELS goes before it.
    The first folder is also the one that downloads go to.
    """
    chosen = os.environ.get("LATENT_UPSCALE_MODELS") or chosen
    return (Path(chosen), MODEL_FOLDER) if chosen else (MODEL_FOLDER,)


def find(entry: Entry, folders: Iterable[Path] | None = None) -> Path:
    """The file of a catalogue entry.

    Raises `MissingWeightsError` if none of the folders has it, and `WeightsError` if it is a
    link that leads out of its folder.
    """
    folders = tuple(folders) if folders is not None else model_folders()
    for folder in folders:
        for name in entry.file.local_names:
            path = folder / name
            if path.is_file():
                check_inside(path, folder)
                return path
    where = folders[0]
    if entry.file.url is None:
        raise MissingWeightsError(
            f"{entry.id}: {entry.file.name}, which ships with this extension, is not in "
            f"{folders[-1]}. Install the extension anew, or bring the file back with git checkout."
        )
    raise MissingWeightsError(
        f"{entry.id}: its weights are not in {where} yet. Fetch them with "
        f'"python -m lib_latent_upscale fetch {entry.id}", or download {entry.file.url} '
        f"({entry.file.size / 1e6:.0f} MB) by hand, put the file there under the name "
        f"{entry.file.name}, and start the job again."
    )


def check_inside(path: Path, folder: Path) -> None:
    """Raises `WeightsError` if `path` is a link that leads out of `folder`."""
    target = Path(os.path.realpath(path))  # unlike resolve(), no error for links in a circle
    if not target.is_relative_to(os.path.realpath(folder)):
        raise WeightsError(
            f"{path} is a link to {target}, outside of {folder}. Copy the file here, or "
            "name its own folder as the folder of models in the settings."
        )


def sha256(path: Path) -> str:
    """The file's sha256, in hexadecimal digits."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


def short_hash(path: Path) -> str:
    """The first ten digits of the file's sha256, as the WebUIs name checkpoints."""
    return sha256(path)[:10]


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int, size: int) -> str:
    """The file's sha256; the other arguments make a changed file another one."""
    return _digest(hashlib.sha256(), path)


def git_blob(path: Path) -> str:
    """The id that git gives a file of this content."""
    header = f"blob {path.stat().st_size}\0".encode()
    return _digest(hashlib.sha1(header, usedforsecurity=False), path)


def first_bytes(path: Path) -> bytes:
    """What a file begins with, a few hundred bytes."""
    with path.open("rb") as file:
        return file.read(512)


def is_web_page(path: Path) -> bool:
    """Whether a file is what a proxy or a login page sends in place of another one."""
    return re.match(rb"[\xef\xbb\xbf\s]*<[!?a-zA-Z]", first_bytes(path)) is not None


def _digest(digest: Any, path: Path) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())
