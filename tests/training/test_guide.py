"""docs/training.md: its commands can be given, and its recipes are those that there are."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from lib_latent_upscale.training.__main__ import COMMANDS
from lib_latent_upscale.training.recipe_book import RECIPES

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
GIVEN = [
    shlex.split(line.split("lib_latent_upscale.training ")[1])
    for line in GUIDE.splitlines()
    if line.startswith("    ") and "lib_latent_upscale.training " in line
]


@pytest.mark.parametrize("words", GIVEN, ids=lambda words: " ".join(words)[:60])
def test_the_options_are_there(words: list[str]) -> None:
    module = import_module(f"lib_latent_upscale.training.{words[0]}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args(words[1:])  # ends the test by SystemExit for what there is not


def test_every_command_is_shown() -> None:
    assert {words[0] for words in GIVEN} == set(COMMANDS)


def test_every_recipe_is_named() -> None:
    named = set(re.findall(r"`([a-z0-9-]+)`", GUIDE))
    assert set(RECIPES) <= named
    started = {words[words.index("--recipe") + 1] for words in GIVEN if "--recipe" in words}
    assert started <= set(RECIPES)


def test_published_steps_and_batches_are_those_of_the_recipes() -> None:
    rows = [line.split("|") for line in GUIDE.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if len(row) == 9]
    assert len(rows) == 13
    for _, names, _, _, _, batch, steps, _, _ in rows:
        recipes = [RECIPES[name] for name in re.findall(r"`([^`]+)`", names)]
        assert [f"{one.steps // 1000}k" for one in recipes] == steps.strip().split(", ")
        assert {one.batch for one in recipes} == {int(batch.split()[0])}
