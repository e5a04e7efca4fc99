"""What a user sees of train: help, recipes, dry run, errors, curves, samples, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import lib_latent_upscale
from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training import codecs, estimate, networks
from lib_latent_upscale.training.__main__ import COMMANDS, main
from lib_latent_upscale.training.curve import Curve
from lib_latent_upscale.training.recipe_book import RECIPES
from lib_latent_upscale.training.report import plot
from lib_latent_upscale.training.shards import ShardReader, Source
from lib_latent_upscale.training.validation import hold_out

from .tiny import NETWORKS, write_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def options(out: Path, data: Path, *more: str) -> list[str]:
    return [
        "train", "--data", str(data), "--out", str(out), "--steps", "6", "--batch", "2",
        "--crop", "8", "--threads", "1", "--device", "cpu", "--log-every", "2",
        "--validate-every", "3", "--sample-every", "3", "--set", "network.dim=8",
        "--set", "network.depth=2", *more,
    ]  # fmt: skip


def test_help_tells_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for word in ("--recipe", "--resume", "--time-limit", "--dry-run", "torchrun", "network.dim=24"):
        assert word in text


def test_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list-recipes"]) == 0
    text = capsys.readouterr().out
    for recipe in RECIPES.values():
        assert f"{recipe.name}: {recipe.summary}" in text and recipe.notes in text


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "pairs")
    assert main(options(tmp_path / "run", data, "--dry-run", "--set", "clip=3")) == 0
    text = capsys.readouterr().out
    assert "data: 12 pairs of SD1.5 in 2 shards" in text
    assert '"clip": 3.0' in text and '"dim": 8' in text
    network = networks.build(networks.NetworkSpec("compact", NETWORKS["compact"]), 4, 2)
    count = sum(weight.numel() for weight in network.parameters())
    assert f"network: {count:,} parameters" in text
    assert not (tmp_path / "run").exists()


FULL_SIZE = {
    "dat-6x6": 24_443_784, "swinfir-4x6-mse-xl": 3_822_036, "drctfir-l-l1-xl": 27_857_214,
    "ttl": 6_274_020, "compact": 890_948,
}  # fmt: skip
"""Parameters of the published networks."""


@pytest.mark.parametrize("name", FULL_SIZE)
def test_dry_run_at_full_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "dat-6x6":
        pytest.importorskip("timm")
        pytest.importorskip("pytorch_optimizer")
    assert main(["train", "--dry-run", "--recipe", name]) == 0
    text = capsys.readouterr().out
    assert f"network: {FULL_SIZE[name]:,} parameters" in text and "GiB" in text


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_at_full_size(name: str) -> None:
    spec = RECIPES[name].network.untrained
    if spec.architecture not in networks.OWN:
        pytest.importorskip("spandrel")
    with torch.device("meta" if spec.architecture in networks.OWN else "cpu"):
        network = networks.build(spec, 4, 2)
    assert sum(weight.numel() for weight in network.parameters()) > 100_000


def test_the_estimate_of_products_and_of_what_is_kept() -> None:
    """city96's, whose convolutions can be counted by hand."""
    recipe = RECIPES["city96"]
    found = estimate.estimate(recipe, 4, 2.0)
    small, large = 32 * 32, 64 * 64
    by_hand = 2 * 9 * (4 * 64 * small + 16 * 64 * 64 * large + 64 * 4 * large)
    assert found.flops == by_hand
    # float32: the input of every convolution, and of every ReLU its result, which is the same.
    kept = 4 * (4 * small + 64 * small + 17 * 64 * large)
    assert kept <= found.kept <= 1.1 * kept
    assert found.fixed == 4 * 5 * found.parameters


def test_a_run_and_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    data, run = write_pairs(tmp_path / "pairs", 24), tmp_path / "run"
    decoder = tmp_path / "decoder.safetensors"
    torch.manual_seed(0)
    save_file(codecs.Decoder(4, 8).state_dict(), decoder)
    assert main(options(run, data, "--decoder", str(decoder), "--precision", "fp32")) == 0

    lines = Curve(run).read()
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [2, 4, 6]
    assert trained[0]["loss"] == pytest.approx(trained[0]["l1"])
    measured = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in measured] == [3, 6]
    assert {"psnr", "l1", "mse"} <= measured[0].keys()
    assert [line["kind"] for line in lines].count("baseline") == 1
    samples = sorted((run / "samples").iterdir())
    assert [one.name for one in samples] == ["step-00000003.png", "step-00000006.png"]
    assert Image.open(samples[0]).width > 4 * 256
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in report and "<polyline" in report
    assert not re.search(r"(src|href)='(?!data:)", report), "it needs nothing else"
    assert f"{measured[-1]['psnr']:.4f}" in report
    assert list((run / "tensorboard").glob("events*"))

    # The averaged weights, as the library loads them, in UNet scale.
    best = max(measured, key=lambda line: line["psnr"])
    loaded = lib_latent_upscale.load(run / "weights" / "best.safetensors")
    assert loaded.input_scale == SD15.unet and loaded.network.scale == 2
    _, held = hold_out(ShardReader(data), 64)
    assert held is not None
    errors = []
    for index in range(len(held)):
        small, large = held.pair(index)
        result = loaded(small[None] * SD15.unet.factor, (32, 32))
        errors.append(float((result - large[None] * SD15.unet.factor).abs().mean()))
    assert sum(errors) / len(errors) == pytest.approx(best["l1"], rel=1e-4)


def test_bf16_on_the_cpu_learns(tmp_path: Path) -> None:
    data, run = write_pairs(tmp_path / "pairs", 24), tmp_path / "run"
    more = ["--steps", "150", "--learning-rate", "5e-3", "--warm-up", "5", "--sample-every", "0"]
    more += ["--log-every", "25", "--validate-every", "0"]
    assert main([*options(run, data), *more, "--precision", "bf16"]) == 0
    trained = [line["loss"] for line in Curve(run).read() if line["kind"] == "train"]
    assert trained[-1] < 0.8 * trained[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe", "dta"], "no recipe 'dta'"),
        (["--crop", "64"], "Choose a smaller crop"),
        (["--set", "network.dpeth=3"], "no parameter 'dpeth'"),
        (["--set", "nonsense"], "KEY=VALUE"),
        (["--optimizer", "adamv"], "no optimizer 'adamv'"),
        (["--schedule", "linear"], "no schedule 'linear'"),
        (["--loss", "l1=1,on=picture"], "needs the VAE's decoder"),
        (["--loss", "contextual=1"], "--features"),
        (["--loss", "mse=1,start=5"], "no loss counts at step 0"),
        (["--device", "cuda:77"], "no device"),
        (["--decoder", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--set", "scale=large"], '"raw", "unet" or a number'),
    ],
)
def test_errors_say_what_to_do(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "adamv" in more:
        pytest.importorskip("pytorch_optimizer")
    data = write_pairs(tmp_path / "pairs")
    assert main([*options(tmp_path / "run", data), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "settings.json").exists()


def test_missing_options_and_pairs_of_another_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "--data is missing" in capsys.readouterr().err
    data, other = write_pairs(tmp_path / "a"), write_pairs(tmp_path / "b", space="sdxl")
    assert main([*options(tmp_path / "run", data), "--validate", str(other)]) == 2
    assert "the validation pairs are of SDXL" in capsys.readouterr().err


def test_a_curve_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    curve = Curve(tmp_path)
    for step in (1, 2, 3):
        curve.add("train", step, {"loss": step})
    curve.add("event", 3, {"text": "it broke"})
    with curve.path.open("a") as file:
        file.write('{"step": 4, "kind": "tr')
    curve.cut_after(2)
    assert [(line["step"], line["kind"]) for line in curve.read()] == [
        (1, "train"), (2, "train"), (3, "event"),
    ]  # fmt: skip
    assert json.loads(curve.path.read_text().splitlines()[0]) == {
        "step": 1, "kind": "train", "loss": 1,
    }  # fmt: skip


class Names(ShardReader):
    """A reader of pairs that have names only."""

    def __init__(self, pictures: list[int]) -> None:
        self.pictures, self.files, self.space, self.labels = pictures, [], SD15, ("",)

    def __len__(self) -> int:
        return len(self.pictures)

    def source(self, index: int) -> Source:
        return Source(f"{self.pictures[index]}.png", "")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 64))
def test_no_picture_is_trained_on_and_measured_on(pictures: list[int], wanted: int) -> None:
    reader = Names(pictures)
    train, held = hold_out(reader, wanted)
    trained = {train.source(index).picture for index in range(len(train))}
    if held is None:
        assert len(train) == len(reader)
        return
    measured = {held.source(index).picture for index in range(len(held))}
    assert measured and trained and not measured & trained
    assert len(train) + len(held) == len(reader)
    assert len(held) <= 2 * min(wanted, len(reader) // 8)


@pytest.mark.parametrize("points", [[(0, 1.0), (10, 1.0)], [(1, 2.0), (2, -3.0), (9, 1e9)]])
def test_plot(points: list[tuple[float, float]]) -> None:
    drawn = re.search(r"points='([^']*)'", plot(points))
    assert drawn
    for pair in drawn[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 860 and 0 <= y <= 260
