"""Published files as this extension keeps them: .safetensors, without what the network knows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import save

from ..architectures.network import is_derived
from ..catalog import Entry
from . import checking, files, reading


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
    else:
        kept = {
            key: value.contiguous().clone()
            for key, value in content.tensors.items()
            if not is_derived(key)
        }
        metadata = {
            "format": "pt",
            "id": entry.id,
            "source_url": str(entry.file.url),
            "source_sha256": source_sha256,
            "licence": entry.licence,
        }
        target.write_bytes(_in_one_order(save(kept, metadata)))
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes the metadata in any order."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    header += " " * (-len(header) % 8)  # numbers begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header.encode() + content[8 + length :]
