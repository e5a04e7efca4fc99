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
from .shelf import Shelf
from .weights import files, hand_placed
from .weights.errors import MissingWeightsError, WeightsError
from .weights.fetching import Fetcher


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
    for item in Shelf(folders, placed.entries).items():
        entry, state, digest = item.entry, "no", ""
        if item.path is not None:
            state, digest = item.path.name, files.short_hash(item.path)
        elif item.problem is not None and entry.file.url is not None:
            state = "refused: verify says why"
        elif item.arrived:
            state = f"{item.arrived / 1e6:.0f} MB of it"
        factor = f"{entry.factor:g}" if entry.factor else "1 to 2"
        about = (entry.space.label, factor, f"{item.size / 1e6:.0f}", entry.licence, state, digest)
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
    shelf = Shelf(folders, placed.entries)
    for id in options.ids:
        shelf.entry(id)  # to know of a wrong one before any work
    failures = [] if options.ids else list(placed.problems)
    for entry in shelf.entries:
        if options.ids and entry.id not in options.ids:
            continue
        try:
            verified = shelf.verify(entry.id)
            print(f"{entry.id}: {verified.path.name}, {verified}")
        except MissingWeightsError as error:
            if options.ids or entry.file.url is None:
                failures.append(str(error))
        except WeightsError as error:
            again = f"python -m lib_latent_upscale fetch --again {entry.id}"
            reason = str(error).rstrip(".")
            failures.append(reason + (f'. Get it anew: "{again}"' if entry.file.url else ""))
    if failures:
        raise WeightsError("\n".join(failures))
