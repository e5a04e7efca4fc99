"""What was fetched into a folder of models, and the hashes that it had: `hashes.json` there.

For files of which no hash is published, the first good download's is the one that later ones
must have.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import WeightsError

FILE_NAME = "hashes.json"


@dataclass(frozen=True)
class Record:
    """One fetched model."""

    url: str
    source_sha256: str
    """Of the file as published."""
    name: str
    sha256: str
    """Of the file as kept: the same unless it was converted."""


def read(folder: Path) -> dict[str, Record]:
    """The records of a folder, by model id.

    Raises `WeightsError` for a damaged file: to forget it silently would be to accept anything.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {id: Record(**record) for id, record in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}, which keeps the hashes of what was fetched, cannot be read ({error}). "
            "Delete it to trust what is fetched next."
        ) from error


def write(folder: Path, id: str, record: Record) -> None:
    """Adds or replaces a record; the file changes whole or not at all."""
    records = {**read(folder), id: record}
    path = folder / FILE_NAME
    part = folder / f"{FILE_NAME}.{os.getpid()}.part"
    text = json.dumps({id: asdict(records[id]) for id in sorted(records)}, indent=2)
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
