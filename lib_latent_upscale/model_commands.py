"""The commands about models: list, fetch, verify. `install.py` has them too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from . import preferences
from .catalog import CATALOG, Entry
from .console import bar
from .weights import checking, files, hand_placed, ledger, reading
from .weights.errors import MissingWeightsError, WeightsError
from .weights.fetching import Fetcher, arrived


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands to a parser's."""
    listing = commands.add_parser("list", help="list the models, and which are here")
    listing.set_defaults(run=_list)

    fetch = commands.add_parser(
        "fetch",
        help="download models",
        description="Downloads models into the folder of models, checks them, and converts "
        "pickles to .safetensors. A broken download is gone on with.",
    )
    fetch.add_argument("ids", nargs="+", metavar="ID", help="ids of the list; or recommended, all")
    fetch.add_argument("--again", action="store_true", help="replace what is here already")
    fetch.add_argument(
        "--accept-changed",
        action="store_true",
        help="take a file that is not the one fetched first, where no hash is published",
    )
    fetch.set_defaults(run=_fetch)

    verify = commands.add_parser(
        "verify", help="check the files that are here: hashes, keys, shapes, finite numbers"
    )
    verify.add_argument("ids", nargs="*", metavar="ID", help="only these")
    verify.set_defaults(run=_verify)
    for command in (listing, fetch, verify):
        command.add_argument(
            "--folder", type=Path, help="the folder of models (LATENT_UPSCALE_MODELS, or models/)"
        )
    fetch.add_argument("--mirror", help="an address to try first (LATENT_UPSCALE_MIRROR)")


def fetcher(folder: Path | None = None, mirror: str | None = None) -> Fetcher:
    """One that fetches where, and from where, the environment says unless told otherwise."""
    wanted = preferences.gather()
    return Fetcher(_folders(folder)[0], mirror if mirror is not None else wanted.mirror)


def fetch_with_bar(fetcher: Fetcher, entry: Entry, **how: bool) -> Path:
    """`Fetcher.fetch` with a bar on the console while it takes time."""
    with bar(entry.id) as progress:
        return replace(fetcher, progress=progress).fetch(entry, **how)


def _folders(folder: Path | None) -> tuple[Path, ...]:
    return (folder, files.MODEL_FOLDER) if folder is not None else files.model_folders()


def _list(options: argparse.Namespace) -> None:
    folders = _folders(options.folder)
    placed = hand_placed.scan(folders)
    rows: list[tuple[str, ...]] = [
        ("id", "label", "space", "factor", "MB", "licence", "here", "sha256")
    ]
    for entry in (*CATALOG.values(), *placed.entries):
        size, state, digest = entry.file.size, "no", ""
        try:
            path = files.find(entry, folders)
            size, state, digest = path.stat().st_size, path.name, files.short_hash(path)
        except MissingWeightsError:
            if there := arrived(entry, folders[0]):
                state = f"{there / 1e6:.0f} MB of it"
        except WeightsError:
            state = "refused: verify says why"
        factor = f"{entry.factor:g}" if entry.factor else "1 to 2"
        about = (entry.space.label, factor, f"{size / 1e6:.0f}", entry.licence, state, digest)
        rows.append((entry.id, entry.label, *about))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for problem in placed.problems:
        print(problem, file=sys.stderr)


def _fetch(options: argparse.Namespace) -> None:
    how = {"again": options.again or options.accept_changed}
    how["accept_changed"] = options.accept_changed
    failures = []
    for entry in _chosen(options.ids):
        try:
            path = fetch_with_bar(fetcher(options.folder, options.mirror), entry, **how)
            print(f"{entry.id}: {path}, sha256 {files.sha256(path)}")
        except WeightsError as error:  # the others may work
            failures.append(str(error))
    if failures:
        raise WeightsError("\n".join(failures))


def _chosen(ids: list[str]) -> Iterator[Entry]:
    """The entries of these ids, and of sets of them; raises `WeightsError` for an unknown id."""
    names = [name for id in ids for name in preferences.SETS.get(id, (id,))]
    unknown = [name for name in names if name not in CATALOG]
    if unknown:
        raise WeightsError(f"{unknown[0]}: no such model; there are {', '.join(CATALOG)}")
    return (CATALOG[name] for name in dict.fromkeys(names))


def _verify(options: argparse.Namespace) -> None:
    folders = _folders(options.folder)
    placed = hand_placed.scan(folders)
    known = {entry.id: entry for entry in (*CATALOG.values(), *placed.entries)}
    unknown = [id for id in options.ids if id not in known]
    if unknown:
        raise WeightsError(f"{unknown[0]}: no such model; there are {', '.join(known)}")
    failures = [] if options.ids else list(placed.problems)
    for entry in known.values():
        if options.ids and entry.id not in options.ids:
            continue
        try:
            path = files.find(entry, folders)
            print(f"{entry.id}: {path.name}, {_checked(entry, path)}")
        except MissingWeightsError as error:
            if options.ids or entry.file.url is None:
                failures.append(str(error))
        except WeightsError as error:
            again = f"python -m lib_latent_upscale fetch --again {entry.id}"
            reason = str(error).rstrip(".")
            failures.append(reason + (f'. Get it anew: "{again}"' if entry.file.url else ""))
    if failures:
        raise WeightsError("\n".join(failures))


def _checked(entry: Entry, path: Path) -> str:
    """What could be checked of a file; raises `WeightsError` for one that is not what it was."""
    expected, whose = _expected_hash(entry, path)
    sha256 = files.sha256(path)
    if expected is not None and sha256 != expected:
        raise WeightsError(f"{path}: its sha256 is {sha256}, not {expected}, {whose}")
    checking.check_tensors(entry, reading.read(path).tensors)
    return f"sha256 {sha256}, {whose}" if expected else f"sha256 {sha256}; none is known to compare"


def _expected_hash(entry: Entry, path: Path) -> tuple[str | None, str]:
    """The hash that the file must have, and where it is from; None if nothing tells."""
    if entry.file.sha256 is not None and path.name == entry.file.name:
        return entry.file.sha256, "as published"
    record = ledger.read(path.parent).get(entry.id)
    if record is not None and record.name == path.name:
        return record.sha256, "as when it was fetched"
    return None, ""
