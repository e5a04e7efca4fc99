"""What several commands ask of their options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.options import check_out


def test_a_file_that_can_be_written_is_no_error(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "folder" / "weights.safetensors")
    check_out(Path("weights.safetensors"))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="a name that ends in"):
        check_out(tmp_path / "weights")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(TrainingError, match="is a folder"):
        check_out(folder)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TrainingError, match="nothing can be written in"):
        check_out(file / "new" / "weights.safetensors")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(TrainingError, match="nothing can be written in"):
        check_out(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("halfway", ["--steps", "-1", "5"], "--steps is two numbers"),
        ("halfway", ["--batch", "0"], "--batch is to be above 0, not 0"),
        ("halfway", ["--pairs", "0"], "--pairs is to be above 0"),
        ("halfway", ["--out", "start.pt"], "ends in .safetensors"),
        ("preview", ["--squares", "65"], "64 alone are held out"),
        ("preview", ["--steps", "0"], "--steps is to be above 0, not 0"),
        ("preview", ["--batch", "-1"], "--batch is to be above 0"),
        ("preview", ["--learning-rate", "nan"], "--learning-rate is to be above 0"),
        ("preview", ["--out", "preview.pt"], "ends in .safetensors"),
    ],
)
def test_wrong_options_are_told_before_anything_is_read(
    command: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    away = str(tmp_path / "away")
    said = ["--data", away, "--decoder", away, "--out", str(tmp_path / "out.safetensors")]
    if command == "halfway":
        said += ["--vae", away]
    assert main([command, *said, *more]) == 2
    assert message in capsys.readouterr().err
