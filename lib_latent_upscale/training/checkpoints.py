"""Checkpoints: all that a run needs to go on as if it had never stopped.

A file holds the network, its average, the optimizer, what the losses have that learns, the step,
the place in the stream of pairs, and what the watch over the loss remembers. Random numbers are
not in it: every step draws its own from the seed and its number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from . import whole
from .errors import TrainingError

_NAME = "step-{:08d}.pt"


class Checkpoints:
    """The checkpoints of a run, in a folder.

    keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, max(1, keep)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Writes one, whole or not at all, and deletes those that are too many."""
        path = self.folder / _NAME.format(step)
        write_whole(path, state)
        for old in self.steps()[: -self.keep]:
            (self.folder / _NAME.format(old)).unlink(missing_ok=True)
        return path

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d{8,})\.pt", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def load_latest(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest one that can be read, or None if there is none at all.

        Raises `TrainingError` if there are some, all damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            path = self.folder / _NAME.format(step)
            try:
                state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
                return state
            except Exception as error:  # whatever torch makes of a file that is cut off
                problems.append(f"{path}: {str(error)[:200]}")
        if problems:
            raise TrainingError("no checkpoint can be read: " + "; ".join(problems))
        return None

    def remove_after(self, step: int) -> None:
        """Deletes those of later steps."""
        for later in self.steps():
            if later > step:
                (self.folder / _NAME.format(later)).unlink(missing_ok=True)


def write_whole(path: Path, state: dict[str, Any]) -> None:
    """torch.save, so that after a crash there is the old file or the new one, never half of it."""
    with whole.replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
