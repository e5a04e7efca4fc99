"""What several commands ask of their options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
