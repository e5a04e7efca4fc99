"""The command export: a file that the dropdown lists and that loads with no more told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lib_latent_upscale
from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.spaces import FLUX, RAW, SD15, SDXL, LatentScale, LatentSpace
from lib_latent_upscale.training import (
    __main__,
    checkpoints,
    evaluation,
    export,
    networks,
    own_weights,
    trained,
)
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.recipe_book import RECIPES
from lib_latent_upscale.weights import hand_placed, reading

from . import tiny

SAID: Mapping[str, Any] = {"recipe": "mine", "data": "clip art", "figures": {"x2": {"psnr": 24.5}}}


def compact(channels: int = 4, spread: float = 1.0) -> Compact:
    torch.manual_seed(0)
    network = Compact(channels, dim=8, depth=2, scale=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= spread
    return network


def of(name: str, space: LatentSpace, factor: float = 2) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(tiny.shrunk(RECIPES[name].network), space.channels, factor).eval()


def write(path: Path, network: nn.Module, **changes: Any) -> export.Exported:
    said = {"space": SD15, "scale": "unet", "factor": 2.0, **SAID, **changes}
    return export.write(network, path, **said)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, with weights, and a checkpoint whose average is another one."""
    recipe = replace(RECIPES["compact"], network=tiny.shrunk(RECIPES["compact"].network))
    network, folder = of("compact", SD15), tmp_path / "runs" / "third"
    metadata = own_weights.metadata_of(recipe, network, SD15)
    own_weights.write(folder / "weights" / "best.safetensors", network, metadata, {"l1": 0.3})
    (folder / "settings.json").write_text(json.dumps({"data": ["/home/me/pairs", "more"]}))
    other = {key: value + 0.01 for key, value in network.state_dict().items()}
    checkpoints.Checkpoints(folder / "checkpoints").save({"ema": other, "step": 7}, 7)
    return folder


# The file


@pytest.mark.parametrize(
    ("scale", "space", "expected"),
    [
        ("raw", SD15, RAW),
        ("unet", FLUX, FLUX.unet),
        ("0.13025", SDXL, LatentScale(0.13025)),
    ],
)
@pytest.mark.parametrize("half", [True, False])
def test_the_file_is_listed_and_loads(
    tmp_path: Path, scale: str, space: LatentSpace, expected: LatentScale, half: bool
) -> None:
    path, network = tmp_path / "a.safetensors", compact(space.channels)
    done = write(path, network, space=space, scale=scale, label="Sharp", half=half)
    (entry,) = hand_placed.scan([tmp_path]).entries
    assert (entry.label, entry.space, entry.input_scale) == ("Latent (Sharp)", space, expected)
    upscaler = lib_latent_upscale.load(path)
    latent = torch.randn(1, space.channels, 8, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = expected.to(space.unet, network(space.unet.to(expected, latent)))
    tolerance = 5e-3 if half else 1e-5
    assert torch.allclose(upscaler(latent, (16, 20)), exact, atol=tolerance)
    assert (done.change > 0) == half
    assert done.size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_said_of_it_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", compact(), licence="CC0", source="me", more={"steps": "9"})
    said = reading.read_header(tmp_path / "a.safetensors").metadata
    assert json.loads(said["figures"]) == {"x2": {"psnr": 24.5}}
    assert (said["recipe"], said["data"], said["steps"]) == ("mine", "clip art", "9")
    (entry,) = hand_placed.scan([tmp_path]).entries
    assert (entry.licence, entry.source, entry.label) == ("CC0", "me", "Latent (a)")


def test_the_same_content_makes_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    for path in paths:
        write(path, compact(), licence="CC0", source="me")
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize(
    ("recipe", "factor"),
    [
        ("city96", 1.5),
        ("dat-6x6", 2),
        ("swinfir-4x6-mse", 2),
        ("drct-l-l1-xl", 2),
        ("ttl", None),
        ("halfway", None),
    ],
)
def test_every_network_of_the_library_needs_no_more_told(
    tmp_path: Path, recipe: str, factor: float | None
) -> None:
    """Also what the weights do not show: city96's factor, and DAT's windows, not the published."""
    spec, network = tiny.shrunk(RECIPES[recipe].network), of(recipe, SD15, factor or 2)
    said = own_weights.metadata_of(replace(RECIPES[recipe], network=spec), network, SD15)
    write(tmp_path / "a.safetensors", network, factor=factor, scale="raw", half=False, more=said)
    (entry,) = hand_placed.scan([tmp_path]).entries
    assert (entry.architecture, entry.factor) == (spec.architecture, factor)
    upscaler = lib_latent_upscale.load(tmp_path / "a.safetensors")
    latent = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    size = (int(12 * (factor or 2)), int(16 * (factor or 2)))
    with torch.no_grad():
        exact = RAW.to(SD15.unet, network(SD15.unet.to(RAW, latent), size))
    assert torch.allclose(upscaler(latent, size), exact, atol=1e-4)


# What is refused, with nothing written


@pytest.mark.parametrize(
    ("name", "network", "changes", "message"),
    [
        ("a.pt", compact(), {}, "is a .safetensors file"),
        ("compact-sd15-x2.safetensors", compact(), {}, "the name of a published file"),
        ("a.safetensors", compact(), {"space": FLUX}, "those of FLUX have 16"),
        ("a.safetensors", compact(), {"factor": 3.0}, "its factor is '3'"),
        ("a.safetensors", compact(), {"scale": "UNET"}, 'its "input" is'),
        ("a.safetensors", compact(spread=1e9), {}, "try --float32"),
        ("a.safetensors", City96(4, 4, 1, 2.0), {"factor": None}, "do not show 'scale'"),
        ("a.safetensors", nn.Conv2d(4, 4, 3), {}, "no weights of a latent upscaler"),
    ],
)
def test_what_could_not_be_used_is_not_written(
    tmp_path: Path, name: str, network: nn.Module, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message.replace("(", r"\(")) as error:
        write(tmp_path / name, network, **changes)
    assert "\n" not in str(error.value)
    assert ".export-" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_float16_changes_too_much_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_CHANGE", 1e-6)
    with pytest.raises(TrainingError, match="keep them in float32 by --float32"):
        write(tmp_path / "a.safetensors", compact())
    write(tmp_path / "a.safetensors", compact(), half=False)


# Figures


def evaluation_file(path: Path, *models: str) -> Path:
    figures = {key: 0.123456 for key in evaluation.FIGURES}
    names = [evaluation.BICUBIC, *models, evaluation.THROUGH_THE_PICTURE]
    ways = {name: {"mean": {**figures, "psnr": 20.0 + i}} for i, name in enumerate(names)}
    result = {"factor": 2.0, "large_pixels": 384, "pictures": ["a", "b"], "ways": ways}
    path.write_text(json.dumps({"space": "sd15", "results": [result]}))
    return path


def test_figures_come_from_an_evaluation(tmp_path: Path) -> None:
    path = evaluation_file(tmp_path / "a.json", "mine")
    found = export.figures_of(path, None, SD15)["x2"]
    assert (found["psnr"], found["ssim"], found["pictures"]) == (21.0, 0.1235, 2)
    assert found["psnr_of_others"] == {
        evaluation.BICUBIC: 20.0, evaluation.THROUGH_THE_PICTURE: 22.0
    }  # fmt: skip
    assert "seconds" not in found
    evaluation_file(path, "other", "mine")
    assert export.figures_of(path, None, SD15, usual="mine")["x2"]["psnr"] == 22
    assert export.figures_of(path, "other", SD15, usual="mine")["x2"]["psnr"] == 21


@pytest.mark.parametrize(
    ("models", "way", "space", "message"),
    [
        (("mine", "other"), None, SD15, "figures of mine, other: say which"),
        (("mine",), "another", SD15, "figures of mine: say which"),
        ((), None, SD15, "say which"),
        (("mine",), None, SDXL, "is of sd15 latents, not sdxl"),
    ],
)
def test_figures_of_something_else_are_refused(
    tmp_path: Path, models: tuple[str, ...], way: str | None, space: LatentSpace, message: str
) -> None:
    path = evaluation_file(tmp_path / "a.json", *models)
    with pytest.raises(TrainingError, match=message):
        export.figures_of(path, way, space)


@pytest.mark.parametrize("content", ["", "[]", '{"space": "sd15", "results": [{}]}'])
def test_a_file_of_no_evaluation(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(TrainingError, match="no file of evaluate"):
        export.figures_of(tmp_path / "a.json", None, SD15)


# The command


def test_a_run_is_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(models))
    figures = evaluation_file(tmp_path / "a.json", "mine")
    command = ["export", str(run), "--evaluation", str(figures), "--label", "Third"]
    assert __main__.main([*command, "--dry-run"]) == 0
    assert "would be written to" in capsys.readouterr().out
    assert not models.exists()
    assert __main__.main(command) == 0
    assert "differ from the float32 weights' by 0.0" in capsys.readouterr().out
    path = models / "third-sd15.safetensors"
    said = reading.read_header(path).metadata
    assert (said["recipe"], said["data"], said["input"]) == ("compact", "pairs, more", "unet")
    assert json.loads(said["figures"])["x2"]["psnr"] == 21
    assert "network" not in said
    assert __main__.main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert __main__.main([*command, "--force"]) == 0


def test_of_a_checkpoint_the_average_is_exported(run: Path, tmp_path: Path) -> None:
    path, best = run / "checkpoints" / "step-00000007.pt", run / "weights" / "best.safetensors"
    out = tmp_path / "a.safetensors"
    assert __main__.main(["export", str(path), "--out", str(out), "--float32"]) == 0
    found, before = (reading.read(one).tensors for one in (out, best))
    for key in before:
        assert torch.allclose(found[key], before[key] + 0.01)
    assert reading.read_header(out).metadata["steps"] == "7"
    assert "figures" not in reading.read_header(out).metadata


@pytest.mark.parametrize(
    ("what", "message"),
    [("nowhere", "no such file"), (".", "has no weights/best.safetensors yet")],
)
def test_what_is_no_run(
    tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["export", str(tmp_path / what)]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step-00000007.pt"
    path.write_bytes(path.read_bytes()[:99])
    assert __main__.main(["export", str(path)]) == 2
    assert "is no checkpoint of a run" in capsys.readouterr().err


def test_weights_that_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(compact().state_dict(), tmp_path / "a.pth")
    assert __main__.main(["export", str(tmp_path / "a.pth")]) == 2
    assert "does not say which latents it is for" in capsys.readouterr().err


def test_networks_of_spandrel_are_evaluated_but_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("spandrel", reason="spandrel is not installed: pip install spandrel")
    network, path = of("hat", SD15), tmp_path / "best.safetensors"
    # Begun from a file that is not here any more.
    spec = replace(tiny.shrunk(RECIPES["hat"].network), weights="gone.pt")
    recipe = replace(RECIPES["hat"], network=spec)
    own_weights.write(path, network, own_weights.metadata_of(recipe, network, SD15), {})
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = RAW.to(SD15.unet, network(SD15.unet.to(RAW, latent)))
    assert torch.allclose(trained.load_upscaler(path)(latent, (16, 16)), exact, atol=1e-5)
    assert __main__.main(["export", str(path)]) == 2
    assert "it can be trained and evaluated, not exported" in capsys.readouterr().err
