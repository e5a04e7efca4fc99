"""Published files as this extension keeps them: .safetensors, without what the network knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ..architectures.network import is_derived
from ..catalog import Entry
from . import checking, files, reading


def convert(entry: Entry, source: Path, target: Path, url: str, source_sha256: str) -> None:
    """Writes the weights of a published file to `target`, on the disk when it returns.

    A .safetensors file stays what it is, byte for byte, so that its published hash stays true.
    Raises `WeightsError` if the file does not hold the entry's weights.
    """
    content = reading.read(source)
    checking.check_tensors(entry, content.tensors)
    if source.suffix.lower() not in files.PICKLES:
        shutil.copyfile(source, target)
    else:
        kept = {
            key: value.contiguous().clone()
            for key, value in content.tensors.items()
            if not is_derived(key)
        }
        metadata = {
            "format": "pt",
            "id": entry.id,
            "source_url": url,
            "source_sha256": source_sha256,
            "licence": entry.licence,
        }
        save_file(kept, target, metadata)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
