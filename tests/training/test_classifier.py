"""The classifier of latents: its command, its file, its features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_latent_upscale.spaces import FLUX, SD15
from lib_latent_upscale.training import latent_classifier, losses
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.latent_classifier import LatentClassifier
from lib_latent_upscale.training.shards import Pair, Source, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 80


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with two labels: smooth latents and rough ones."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for index in range(96):
        label = ("smooth", "rough")[index % 2]
        rough = torch.randn(4, 20, 20, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(rough, 5, 1) * 5
        large = (smooth if label == "smooth" else rough[:, 2:-2, 2:-2]) * 5
        small = torch.nn.functional.avg_pool2d(large, 2)
        pairs.append(Pair(large, small, Source(f"{index}.png", label)))
    path = tmp_path_factory.mktemp("pairs") / "shard.safetensors"
    write_shard(path, pairs, SD15, "none")
    return path


def arguments(shard: Path, out: Path, *more: str) -> list[str]:
    return [
        "classifier", "--data", str(shard), "--out", str(out), "--steps", str(STEPS), "--batch",
        "8", "--crop", "6", "--width", "8", "--learning-rate", "5e-3", "--device", "cpu", *more,
    ]  # fmt: skip


def test_it_learns_to_tell_folders_apart(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.safetensors"
    assert main(arguments(shard, out)) == 0
    printed = capsys.readouterr().out
    assert "96 pairs of SD1.5 latents, 12 of them held out" in printed
    assert "smooth: 48" in printed
    model = latent_classifier.load(out)
    assert model.labels == ("rough", "smooth")
    assert model.space == SD15
    assert not any(parameter.requires_grad for parameter in model.parameters())
    generator = torch.Generator().manual_seed(9)
    rough = torch.randn(16, 4, 16, 16, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(rough, 5, 1) * 5
    rough = rough[..., 2:-2, 2:-2]
    told = model(torch.cat([rough, smooth]) * 5).argmax(1)
    assert (told == torch.tensor([0] * 16 + [1] * 16)).float().mean() > 0.9
    metadata = latent_classifier.read(out).metadata
    assert float(metadata["accuracy"]) > 0.9
    assert metadata["steps"] == str(STEPS)
    loss = losses.build("contextual", features=out)
    assert loss(rough, rough).item() == pytest.approx(0, abs=1e-3)
    assert loss(smooth, rough).item() > 0.1

    # The same again is the same, and nothing that is there is overwritten.
    again = tmp_path / "again.safetensors"
    assert main(arguments(shard, again)) == 0
    first, second = (latent_classifier.read(path).tensors for path in (out, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
    before = out.read_bytes()
    assert main(arguments(shard, out)) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_dry_run_writes_nothing(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(shard, tmp_path / "features.safetensors", "--dry-run")) == 0
    assert "would write" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps is to be above 0"),
        (["--width", "12"], "multiple of 8"),
        (["--device", "nowhere"], "no device"),
        (["--crop", "60"], "smaller crop"),
        (["--out", "features.pt"], "ends in .safetensors"),
        (["--data", "away"], "no such file or folder"),
    ],
)
def test_wrong_options_are_told(
    shard: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(arguments(shard, tmp_path / "features.safetensors", *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_label_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(torch.zeros(4, 16, 16), torch.zeros(4, 8, 8), Source("a.png", "all"))
    write_shard(tmp_path / "shard.safetensors", [pair], SD15, "none")
    assert main(arguments(tmp_path / "shard.safetensors", tmp_path / "out.safetensors")) == 2
    assert "sort them into folders" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_it(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.safetensors"
    assert main(arguments(shard, out, "--learning-rate", "1e30", "--steps", "60")) == 2
    assert "smaller --learning-rate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space", [SD15, FLUX])
def test_features_of_any_size(space) -> None:
    model = LatentClassifier(space, ["a", "b", "c"], 8)
    latents = torch.randn(2, space.channels, 21, 13)
    assert model(latents).shape == (2, 3)
    shapes = [tuple(feature.shape) for feature in model.features(latents)]
    assert shapes == [(2, 8, 21, 13), (2, 16, 11, 7), (2, 32, 6, 4)]
    with pytest.raises(ValueError, match=f"wants .N, {space.channels}"):
        model.features(torch.zeros(2, space.channels + 1, 8, 8))


def test_what_is_no_classifier_is_told(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with pytest.raises(TrainingError, match="no such file"):
        latent_classifier.load(path)
    model = LatentClassifier(SD15, ["a", "b"], 8)
    latent_classifier.save(model, path, {})
    metadata = dict(latent_classifier.read(path).metadata)
    for change in (
        {"format": "another"},
        {"space": "sd9"},
        {"width": "16"},
        {"labels": "[]"},
        {"labels": "none"},
    ):
        save_file(model.state_dict(), path, {**metadata, **change})
        with pytest.raises(
            TrainingError, match=r"no classifier of latents .* classifier makes one"
        ):
            latent_classifier.load(path)
