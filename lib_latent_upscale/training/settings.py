"""All that a run was started with, in one file of its folder, `settings.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import whole
from .errors import TrainingError
from .networks import tuples
from .recipes import Recipe, from_json

FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """A run: a recipe, on some pairs, in a folder.

    data, validation: shards or folders of them. Without the latter, pictures of the former are
        held out.
    vae, decoder: files for `vae.open_vae`; or "" each.
    features: a classifier's file, for the contextual loss.
    lpips: a file of the weights of LPIPS's network.
    threads: of the CPU; 0 for torch's own choice. time_limit: minutes; 0 for none.
    The `..._every` are in steps; 0 for never.
    """

    recipe: Recipe
    out: str
    data: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_pairs: int = 64
    vae: str = ""
    decoder: str = ""
    features: str = ""
    lpips: str = ""
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    threads: int = 0
    time_limit: float = 0.0
    log_every: int = 50
    validate_every: int = 500
    sample_every: int = 2000
    checkpoint_every: int = 500
    keep: int = 2
    compile: bool = False

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return Path(self.out)

    def save(self) -> None:
        """Writes it into the run's folder."""
        said = {**dataclasses.asdict(self), "recipe": self.recipe.as_json()}
        whole.write_text(self.folder / FILE, json.dumps(said, indent=1) + "\n")


def load(folder: Path) -> Settings:
    """The settings of a run. Raises `TrainingError` if there are none."""
    path = folder / FILE
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recipe = from_json(said.pop("recipe"))
        return Settings(recipe=recipe, **tuples(said))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{folder} is not the folder of a run: {path}: {error}") from error


def check_same_training(now: Settings, before: Settings) -> None:
    """Raises `TrainingError` where a run could not go on: with another network, say.

    Its length, what it is watched by and where it runs may change.
    """
    fixed = ("network", "terms", "optimizer", "scale", "crop", "factor", "batch", "accumulation")
    for name in fixed:
        one, other = getattr(before.recipe, name), getattr(now.recipe, name)
        if one != other:
            raise TrainingError(
                f"the run in {before.out} has {name} {one}, not {other}: leave it, or begin a new "
                "run in another folder (from these weights, by --set network.weights=FILE)"
            )
    if now.seed != before.seed:
        raise TrainingError(f"the run in {before.out} has seed {before.seed}, not {now.seed}")
