"""Writing .safetensors files whose bytes depend on nothing but what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the tensors and what is said about them; on the disk when it returns.

    The same content makes the same file: pictures name its hash.
    """
    kept = {key: value.contiguous().clone() for key, value in tensors.items()}
    content = _in_one_order(save(kept, {"format": "pt", **metadata}))
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes the metadata in any order."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    header += " " * (-len(header) % 8)  # numbers begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header.encode() + content[8 + length :]
