"""Finding and reading files of weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .catalog import Entry

MODEL_FOLDER = Path(__file__).resolve().parent.parent / "models"

_PICKLES = (".pth", ".pt")


class WeightsError(Exception):
    """A file of weights that cannot be used; the message says which and why."""


class MissingWeightsError(WeightsError):
    """A model of the catalogue whose file is not there; the message says how to get it."""


@dataclass(frozen=True)
class Weights:
    """What a file holds: the tensors, on the CPU, and the metadata of a safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def hyperparameter(self, name: str) -> Any:
        """A metadata entry as JSON (numbers, lists), or as text; None if it is not there."""
        text = self.metadata.get(name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return text


def model_folders() -> tuple[Path, ...]:
    """Where weights lie: LATENT_UPSCALE_MODELS (if set), then the extension's `models/`."""
    chosen = os.environ.get("LATENT_UPSCALE_MODELS")
    return (Path(chosen), MODEL_FOLDER) if chosen else (MODEL_FOLDER,)


def find(entry: Entry, folders: Iterable[Path] | None = None) -> Path:
    """The file of a catalogue entry.

    Raises `MissingWeightsError` if none of the folders has it.
    """
    folders = tuple(folders) if folders is not None else model_folders()
    for folder in folders:
        for name in entry.file.local_names:
            if (folder / name).is_file():
                return folder / name
    where = folders[-1]
    if entry.file.url is None:
        raise MissingWeightsError(
            f"{entry.id}: {entry.file.name}, which ships with this extension, is not in {where}. "
            "Install the extension anew, or bring the file back with git checkout."
        )
    raise MissingWeightsError(
        f"{entry.id}: its weights are not in {where} yet. Download "
        f"{entry.file.url} ({entry.file.size / 1e6:.0f} MB), put the file there under the name "
        f"{entry.file.name}, and start the job again."
    )


def short_hash(path: Path) -> str:
    """The first ten digits of the file's sha256, as the WebUIs name checkpoints."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)[:10]


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int, size: int) -> str:
    """The file's sha256; the other arguments make a changed file another one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read(path: Path) -> Weights:
    """The tensors and metadata of a .safetensors, .pth or .pt file.

    Pickles are read with `weights_only=True`: nothing in them is run. Raises `WeightsError`.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix in _PICKLES:
        return Weights(_unwrap(path, _read_pickle(path)), {})
    raise WeightsError(f"{path}: weights are .safetensors, .pth or .pt files")


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Weights(tensors, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    # A1111 replaces torch.load by a function that knows no weights_only and answers None for
    # what it refuses; the original stays in torch.serialization.
    load = torch.serialization.load
    try:
        return load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything for a broken file
        raise WeightsError(
            f"{path} is damaged, or holds more than weights: {type(error).__name__}: {error}"
        ) from error


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict itself, where a trainer wrapped it."""
    for name in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items()}
