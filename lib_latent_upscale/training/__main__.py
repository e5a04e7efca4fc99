"""The command line: python -m lib_latent_upscale.training COMMAND."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Before torch is imported: else its threads spin while they wait for each other, and slow down
# whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "prepare": "make pairs of latents from folders of pictures",
    "train": "train a network by a recipe",
    "halfway": "make weights that halfway's training begins from",
    "average": "average the weights of runs that went on from the same",
    "revive": "begin a halfway network's idle channels anew",
    "classifier": "train the features of the contextual loss",
    "evaluate": "measure models on a folder of pictures",
    "preview": "train a small decoder to look at latents with",
    "export": "make a file for models/ of a run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; `arguments` are those of the command line unless given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m lib_latent_upscale.training",
        description="From pictures to an upscaler of your own. docs/training.md tells all of it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="COMMAND --help tells about each:\n"
        + "\n".join(f"  {name:12}{words}" for name, words in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    chosen = parser.parse_args(given[:1]).command
    try:
        # Only what is asked for is imported: --help need not wait for the others.
        module = import_module(f"{__package__}.{chosen}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lib_latent_upscale"):
            raise
        print(f'{chosen} needs {error.name}: pip install ".[train]"', file=sys.stderr)
        return 2
    from .devices import keep_freed_memory
    from .errors import TrainingError

    keep_freed_memory()
    command = argparse.ArgumentParser(
        prog=f"{parser.prog} {chosen}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    try:
        return int(module.run(command.parse_args(given[1:])))
    except TrainingError as error:
        print(f"{chosen}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
