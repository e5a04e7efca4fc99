"""What `install.py` does: the models that the user wants, before the WebUI starts.

The WebUI runs it at every launch in a process of its own, and shows what it printed when it has
ended. So it says little, ends soon whatever the network does, and imports nothing heavy unless
there is something to fetch.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from . import preferences
from .catalog import CATALOG, Entry
from .weights import files
from .weights.errors import MissingWeightsError, WeightsError

if TYPE_CHECKING:
    from .weights.transfer import Progress

_PACKAGES = ("filelock", "numpy", "requests", "safetensors", "tqdm")

_SECONDS = {"recommended": 90.0, "all": 900.0}
"""How long a launch may fetch; the rest comes with the next one, or on first use."""

_AFTER_FAILURE = 24 * 3600.0
"""How long launches do not try again, so that one without a network waits once, not every day."""


def main(extension: Path, arguments: Sequence[str]) -> int:
    """Runs `install.py` with these arguments; returns the exit status.

    extension: the folder of the extension, with links in it left as they are.
    """
    if arguments:
        return _by_hand(extension, arguments)
    try:
        _launch(extension)
    except Exception as error:  # whatever it is, the WebUI must start
        print(f"Latent upscale: {type(error).__name__}: {error}")
    return 0


def _by_hand(extension: Path, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="install.py",
        description="Without arguments: what the WebUI runs when it starts. With them: models.",
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--list", action="store_true", help="list the models, and which are here")
    group.add_argument("--fetch", nargs="+", metavar="ID", help="download these")
    group.add_argument("--verify", action="store_true", help="check the files that are here")
    options = parser.parse_args(arguments)
    from . import cli

    wanted = preferences.gather(preferences.saved_settings(extension))
    where = [f"--folder={wanted.folder}"] if wanted.folder else []
    if options.fetch:
        return cli.main(["fetch", *where, f"--mirror={wanted.mirror}", *options.fetch])
    return cli.main(["list" if options.list else "verify", *where])


def _launch(extension: Path) -> None:
    _install_missing()
    wanted = preferences.gather(preferences.saved_settings(extension))
    folders = files.model_folders(wanted.folder or None)
    missing = [CATALOG[id] for id in preferences.SETS[wanted.fetch] if not _here(id, folders)]
    if missing:
        _fetch(missing, folders[0], wanted)


def _here(id: str, folders: Sequence[Path]) -> bool:
    try:
        files.find(CATALOG[id], folders)
    except MissingWeightsError:
        return False
    except WeightsError:
        pass  # a link out of the folder: the user's affair, said when it is used
    return True


def _fetch(missing: Sequence[Entry], folder: Path, wanted: preferences.Preferences) -> None:
    from .weights.fetching import Fetcher, Stopped, under_way
    from .weights.transfer import Patience

    failed = under_way(folder) / "launch-failed"
    looked_at = sys.stderr.isatty()
    if not looked_at and failed.is_file():
        age = time.time() - failed.stat().st_mtime
        if 0 <= age < _AFTER_FAILURE:  # less than 0: a clock was wrong
            return
    deadline = time.monotonic() + _SECONDS[wanted.fetch]
    for entry in missing:
        with _progress(entry, looked_at) as progress:
            fetcher = Fetcher(
                folder,
                wanted.mirror,
                # A network that is not there must not hold the WebUI's start.
                Patience(connect=4.0, stall=8.0, attempts=1),
                progress,
                should_stop=lambda: time.monotonic() > deadline,
            )
            try:
                path = fetcher.fetch(entry)
            except Stopped:
                print(f"Latent upscale: {entry.id} is not all here yet; the rest comes later")
                return
            except WeightsError as error:
                with suppress(OSError):  # a folder that cannot be written to
                    failed.parent.mkdir(parents=True, exist_ok=True)
                    failed.touch()
                print(
                    f"Latent upscale: {str(error)[:300]}\nIt is fetched when it is first used, or "
                    f'by "install.py --fetch {entry.id}". The models that are here work.'
                )
                return
        print(f"Latent upscale: fetched {path.name}")
    failed.unlink(missing_ok=True)


@contextmanager
def _progress(entry: Entry, looked_at: bool) -> Iterator[Progress | None]:
    """A bar where someone looks on; the WebUI captures what is printed."""
    if not looked_at:
        yield None
        return
    from .console import bar

    with bar(entry.id) as progress:
        yield progress


def _install_missing() -> None:
    """Installs the packages that the host lacks, and changes none that it has."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    from importlib.metadata import distributions

    # Constraints on all that is installed: pip then fails rather than change one.
    pins: dict[str, str] = {}
    for one in distributions():  # of two of one name the first is what python imports
        name = str(one.metadata["Name"])
        pins.setdefault(name.lower().replace("_", "-"), f"{name}=={one.version}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(sorted(pins.values())), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        done = subprocess.run(
            [*command, *missing], capture_output=True, text=True, check=False, timeout=300
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        print(f"Latent upscale: needs {', '.join(missing)}: {last[:300]}")
