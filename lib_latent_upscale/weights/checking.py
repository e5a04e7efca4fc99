"""Whether a file is what it should be: as a whole, before it is read, and by its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..architectures import StateDictError, from_state_dict
from ..architectures.network import is_derived
from ..catalog import Entry
from . import files
from .errors import WeightsError


def check_source(entry: Entry, path: Path, first_sha256: str | None = None) -> None:
    """Raises `WeightsError` unless the file, as published, has the entry's size and hashes.

    first_sha256: the hash that its first download had, for an entry of which none is published.
    """
    file, size = entry.file, path.stat().st_size
    if size not in file.sizes:
        raise WeightsError(
            f"{entry.id}: the file has {size} bytes; {_bytes(file.sizes)} expected"
            + ("; it is a web page, perhaps that of a proxy" if files.is_web_page(path) else "")
        )
    sha256 = files.sha256(path)
    if file.sha256 is not None and sha256 != file.sha256:
        raise WeightsError(f"{entry.id}: the file's sha256 is {sha256}, not {file.sha256}")
    if file.git_blob is not None and files.git_blob(path) != file.git_blob:
        raise WeightsError(f"{entry.id}: the file's git id is not {file.git_blob}")
    if file.sha256 is None and first_sha256 is not None and sha256 != first_sha256:
        raise WeightsError(
            f"{entry.id}: the file at {file.url} is no longer the one that was fetched first "
            f"(sha256 {sha256}, then {first_sha256}). If you know why, accept it with "
            f'"python -m lib_latent_upscale fetch --accept-changed {entry.id}"'
        )


def check_tensors(entry: Entry, tensors: Mapping[str, Tensor]) -> None:
    """Raises `WeightsError` unless these are the entry's weights: keys, shapes, finite numbers."""
    try:
        from_state_dict(tensors, **entry.hyperparameters)
    except (StateDictError, TypeError) as error:
        raise WeightsError(f"{entry.id}: {error}") from error
    found = manifest({key: tuple(value.shape) for key, value in tensors.items()})
    if entry.file.manifest is not None and found != entry.file.manifest:
        count = sum(value.numel() for key, value in tensors.items() if not is_derived(key))
        raise WeightsError(
            f"{entry.id}: these are weights of another model: {count} parameters in "
            f"{len(tensors)} tensors (manifest {found}, {entry.file.manifest} expected)"
        )


def manifest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A digest of the names and shapes of the weights in a state dict.

    What the architecture determines is left out: see `is_derived`.
    """
    lines = [f"{key} {'x'.join(map(str, shapes[key]))}\n" for key in sorted(shapes)]
    kept = [line for line in lines if not is_derived(line.split(" ")[0])]
    return hashlib.sha256("".join(kept).encode()).hexdigest()[:16]


def _bytes(sizes: range) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
