"""Files of weights that the user put into a folder of models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..catalog import Entry, WeightFile, by_file_name, by_label
from . import files, reading
from .describing import describe
from .errors import WeightsError

_LONGEST_LABEL = 60


@dataclass(frozen=True)
class HandPlaced:
    """What `scan` found.

    entries: an entry, as the catalogue's, for each file that can be used.
    problems: a message for each file that cannot, saying why and what to do.
    """

    entries: Sequence[Entry]
    problems: Sequence[str]


def scan(folders: Iterable[Path]) -> HandPlaced:
    """The files in the folders that are no published ones, by name; no numbers are read."""
    entries: dict[str, Entry] = {}
    problems = []
    for path, folder in _candidates(folders):
        try:
            files.check_inside(path, folder)
            entry = _entry(path)
        except (WeightsError, OSError) as error:
            problems.append(str(error))
            continue
        if entry.label in entries or by_label(entry.label) is not None:
            problems.append(
                f"{path}: there is another {entry.label}; rename the file, or give it another "
                f'"label" in a file {path.stem}.json beside it'
            )
            continue
        entries[entry.label] = entry
    return HandPlaced(tuple(entries.values()), tuple(problems))


def _candidates(folders: Iterable[Path]) -> list[tuple[Path, Path]]:
    """The files to look at, each with its folder; of one model's two files the safer one."""
    found: dict[str, tuple[Path, Path]] = {}
    for folder in folders:
        try:
            paths = sorted(folder.iterdir())
        except OSError:  # not there, or not to be read: then nothing in it can be used
            continue
        for suffix in files.SUFFIXES:
            for path in paths:
                if path.suffix.lower() == suffix and by_file_name(path.name) is None:
                    found.setdefault(path.stem, (path, folder))
    return [found[stem] for stem in sorted(found)]


def _entry(path: Path) -> Entry:
    """A file as an entry. Raises `WeightsError` for one that cannot be used."""
    header = reading.read_header(path)
    what = describe(path, header.shapes, header.metadata)
    return Entry(
        id=path.name,
        label=_label(what.label, path),
        architecture=what.architecture,
        space=what.space,
        input_scale=what.input_scale,
        factor=what.factor,
        file=WeightFile(path.name, None, path.stat().st_size),
        licence=_printable(header.metadata.get("licence", "unknown"))[:40],
        source=header.metadata.get("source", "put here by hand"),
        hyperparameters=what.hyperparameters,
    )


def _label(told: str | None, path: Path) -> str:
    """The name in the dropdown: the one that the file's metadata tell, else the file's own."""
    return f"Latent ({_printable(told or '')[:_LONGEST_LABEL].strip() or _printable(path.stem)})"


def _printable(text: str) -> str:
    """A text for the dropdown that an infotext can carry: without commas, colons and quotes."""
    return "".join(one if one.isprintable() and one not in ',:"\\' else " " for one in text).strip()
