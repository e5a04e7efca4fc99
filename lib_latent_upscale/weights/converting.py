"""Published files as this extension keeps them: .safetensors, without what the network knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..architectures.network import is_derived
from ..catalog import Entry
from . import checking, files, reading, writing


def convert(entry: Entry, source: Path, target: Path, source_sha256: str) -> None:
    """Writes the weights of a published file to `target`, on the disk when it returns.

    A .safetensors file stays what it is, byte for byte, so that its published hash stays true.
    What is converted is the same, byte for byte, wherever it came from: pictures name its hash.
    Raises `WeightsError` if the file does not hold the entry's weights.
    """
    content = reading.read(source)
    checking.check_tensors(entry, content.tensors)
    if source.suffix.lower() not in files.PICKLES:
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
        return
    kept = {key: value for key, value in content.tensors.items() if not is_derived(key)}
    metadata = {
        "id": entry.id,
        "source_url": str(entry.file.url),
        "source_sha256": source_sha256,
        "licence": entry.licence,
    }
    writing.write(target, kept, metadata)
