"""Every recipe, small, on a CPU, by the command line; and what the options make of one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib_latent_upscale.spaces import SD15, SPACES
from lib_latent_upscale.training import codecs, latent_classifier
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.criterion import Term
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.recipe_book import RECIPES
from lib_latent_upscale.training.recipes import (
    Recipe,
    from_json,
    override,
    parse_settings,
    parse_term,
)

from .tiny import NETWORKS, write_pairs

DOCUMENT = Path(__file__).resolve().parents[3] / "shared" / "docs" / "training.md"

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = {
    "DAT6x6": "dat-6x6",
    "DAT12x6 contextual": "dat-12x6-contextual",
    "CRAFT7x6": "craft-7x6",
    "SwinFIR4x6 mse 1.5": "swinfir-4x6-mse",
    "SwinFIR4x6 mse xl": "swinfir-4x6-mse-xl",
    "SwinFIR4x6 fft l1 xl": "swinfir-4x6-fft-l1-xl",
    "DRCT-l l1 xl": "drct-l-l1-xl",
    "DRCTFIR-l l1 xl": "drctfir-l-l1-xl",
    "DRCT-l vaeDecode l1 hfen xl": "drct-l-hfen-xl",
    "DRCT-l vaeDecode l1 fft xl": "drct-l-fft-xl",
}
"""The rows of the document's table, and their recipes."""


def needed(recipe: Recipe) -> None:
    """Skips where a package that the recipe wants is missing."""
    if recipe.network.architecture in ("HAT", "DITN", "OmniSR", "GRL"):
        pytest.importorskip("spandrel")
    if recipe.optimizer in ("prodigy", "lamb"):
        pytest.importorskip("pytorch_optimizer")
    for loss, package in (("adversarial", "timm"), ("lpips", "lpips")):
        if any(term.loss == loss for term in recipe.terms):
            pytest.importorskip(package)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Made-up data and models, made when they are asked for."""
    folder = tmp_path_factory.mktemp("recipes")

    def make(name: str) -> Path:
        path = folder / name
        if path.exists():
            return path
        torch.manual_seed(0)
        if name.startswith("pairs"):
            _, space, factor = name.split("-")
            write_pairs(path, 8, space=space, factor=float(factor))
        elif name == "decoder.safetensors":
            save_file(codecs.Decoder(4, 8).state_dict(), path)
        elif name == "features.safetensors":
            model = latent_classifier.LatentClassifier(SD15, ["a", "b"], width=8)
            latent_classifier.save(model, path, {})
        elif name == "lpips.pth":
            torchvision = pytest.importorskip("torchvision")
            torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
        return path

    return make


def small_terms(recipe: Recipe, files: Callable[[str], Path]) -> list[str]:
    """The recipe's losses as options, all of them started by the second step."""
    options = []
    for term in recipe.terms:
        said = dict(term.options)
        if term.loss == "lpips":
            said |= {"net": "squeeze", "weights": files("lpips.pth")}
        own = "".join(f",{key}={value}" for key, value in said.items())
        text = f"{term.loss}={term.weight},start={min(term.start, 1)},on={term.on}{own}"
        options += ["--loss", text]
    return options


@pytest.mark.parametrize("name", RECIPES)
def test_runs_small(name: str, files: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = RECIPES[name]
    needed(recipe)
    decodes = any(term.on == "picture" for term in recipe.terms)
    factor = 2 if recipe.factor == 2 else 1.5
    data = files(f"pairs-{recipe.space}-{factor}")
    arguments = ["train", "--recipe", name, "--data", data, "--out", tmp_path / "run"]
    arguments += ["--steps", 2, "--batch", 4 if not decodes else 2, "--log-every", 1]
    arguments += ["--crop", 12 if decodes else 16 if name in ("omnisr", "dat-ssim") else 8]
    arguments += ["--validation-pairs", 1, "--threads", 1, "--device", "cpu"]
    for key, value in NETWORKS[recipe.network.architecture].items():
        if key in ("depths", "groups") and recipe.network.architecture in ("dat", "craft"):
            value = (1,) * min(2, len(recipe.network.parameters["depths"]))
        arguments += ["--set", f"network.{key}={value}"]
    if decodes:
        arguments += ["--decoder", files("decoder.safetensors")]
    if any(term.loss == "contextual" for term in recipe.terms):
        arguments += ["--features", files("features.safetensors")]
    arguments += small_terms(recipe, files)
    assert main(list(map(str, arguments))) == 0

    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").open()]
    last = [line for line in curve if line["kind"] == "train"][-1]
    for index, term in enumerate(recipe.terms):
        names = [other.name for other in recipe.terms[: index + 1]]
        again = f"_{names.count(term.name)}" if names.count(term.name) > 1 else ""
        assert torch.isfinite(torch.tensor(last[term.name + again]))
    with safe_open(str(tmp_path / "run" / "weights" / "latest.safetensors"), "pt") as file:
        metadata = file.metadata()
        assert metadata["recipe"] == name and metadata["space"] == recipe.space
        assert all(bool(torch.isfinite(file.get_tensor(key)).all()) for key in file.keys())  # noqa: SIM118


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="no shared/docs beside the project")
def test_the_table_is_kept() -> None:
    """Network, losses, optimizer, batch, precision and steps of every row of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) == 8][2:]
    names = [name for row in rows for name in expanded(row[0])]
    assert sorted(names) == sorted(PUBLISHED)
    for row in rows:
        for index, title in enumerate(expanded(row[0])):
            recipe = RECIPES[PUBLISHED[title]]
            assert recipe.network.architecture == row[1].split(",")[0].split()[0].lower() or (
                row[1] == "the same" and recipe.network.architecture == "drct"
            )
            optimizer, rate = row[3].replace("lr ", "").replace(",", "").split()
            assert (recipe.optimizer, recipe.learning_rate) == (optimizer.lower(), float(rate))
            assert recipe.batch == int(row[4]) and recipe.precision == row[5]
            steps = re.findall(r"(\d+)k", row[6])
            assert recipe.steps == 1000 * int(steps[min(index, len(steps) - 1)])
            for loss, weight in re.findall(r"(L1|MSE|FFT|HFEN) x ([\d.]+)", row[2]):
                assert any(
                    (t.loss, t.weight) == (loss.lower(), float(weight)) for t in recipe.terms
                )


def expanded(title: str) -> list[str]:
    """`DRCT-l l1 xl, DRCTFIR-l l1 xl` are two."""
    return [part.strip() for part in title.split(",")]


def test_published_parameters() -> None:
    """What no table says but shared/docs/models.md: the depth that the file's name has."""
    assert RECIPES["dat-12x6-contextual"].network.parameters["depths"] == (6,) * 12
    assert RECIPES["dat-12x6-contextual"].terms[-1].options["band_width"] == 0.5
    assert RECIPES["craft-7x6"].network.parameters["depths"] == (6,) * 7
    assert RECIPES["drctfir-l-l1-xl"].network.parameters["spectral"] is True
    assert RECIPES["swinfir-4x6-mse"].processes == 2
    city96 = RECIPES["city96"]
    assert city96.learning_rate == 5e-4 / 4 and city96.batch * city96.steps == 500_000
    assert RECIPES["ttl"].input_scale(SD15) == SPACES["sdxl"].unet


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name: str) -> None:
    assert from_json(json.loads(json.dumps(RECIPES[name].as_json()))) == RECIPES[name]


def test_overriding() -> None:
    recipe = RECIPES["dat-6x6"]
    assert override(recipe, "steps", "20").steps == 20
    assert override(recipe, "learning_rate", "1").learning_rate == 1.0
    assert override(recipe, "network.depths", "2,2").network.parameters["depths"] == (2, 2)
    assert override(recipe, "network.dropout", "0.5").network.dropout == 0.5
    assert override(recipe, "network.mbconv", "yes").network.mbconv is True
    assert override(recipe, "network.architecture", "hat").network.parameters == {}
    assert override(recipe, "optimizer.betas", "0.9,0.99").optimizer_options["betas"] == (0.9, 0.99)
    other = override(override(recipe, "optimizer.rest", "0.1"), "optimizer", "sgd")
    assert not other.optimizer_options  # which were those of another
    assert override(recipe, "factor", "any").factor is None
    assert override(override(recipe, "factor", "any"), "factor", "1.5").factor == 1.5
    assert override(recipe, "scale", "0.13025").scale == "0.13025"
    for key, value, message in (
        ("stesp", "20", "no setting 'stesp'"),
        ("steps", "many", "whole number"),
        ("network.dropout", "yes", "a number"),
        ("terms", "l1", "--loss"),
        ("network.parameters", "3", "one by one"),
    ):
        with pytest.raises(TrainingError, match=message):
            override(recipe, key, value)
    with pytest.raises(TrainingError, match="KEY=VALUE"):
        parse_settings(["steps"])
    with pytest.raises(TrainingError, match="raw"):
        override(recipe, "scale", "half").input_scale(SD15)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", "0"), ("accumulation", "0"), ("crop", "0"), ("steps", "-1"), ("warm_up", "-3"),
        ("clip", "-1"), ("ema", "1"), ("ema", "-0.5"), ("ema_share", "0"), ("ema_share", "2"),
        ("picture_side", "-1"), ("picture_squares", "0"), ("precision", "fp8"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(key: str, value: str) -> None:
    """By their own name, before anything is made."""
    with pytest.raises(TrainingError, match=rf"^{key}\b"):
        override(RECIPES["halfway"], key, value)


def test_losses_as_people_write_them() -> None:
    assert parse_term("l1=0.08") == Term("l1", 0.08)
    assert parse_term("l1") == Term("l1", 1.0)
    assert parse_term("huber=2,start=10,on=picture,delta=0.5") == Term(
        "huber", 2.0, 10, "picture", {"delta": 0.5}
    )
    for text, message in (
        ("l2=1", "no loss is called"),
        ("l1=heavy", "NAME=WEIGHT"),
        ("l1=1,soon", "NAME=VALUE"),
        ("l1=1,on=paper", "on=picture"),
        ("l1=-1", "above 0"),
    ):
        with pytest.raises(TrainingError, match=message):
            parse_term(text)
