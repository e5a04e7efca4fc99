"""The figures of a run over its steps, one JSON object a line, in `curve.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import whole

FILE = "curve.jsonl"


class Curve:
    """The file of a run's figures.

    A line has `step`, `kind` ("train", "validation", "baseline" or "event") and the figures.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def add(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Adds a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **figures}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a crash cut off is left out."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def cut_after(self, step: int) -> None:
        """Takes away what is to come again when a run goes on from a step; events stay."""
        kept = [line for line in self.read() if line["step"] <= step or line["kind"] == "event"]
        whole.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
