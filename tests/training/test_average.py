"""Networks' weights averaged: the mean by shares, what is said of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.trained import read
from lib_latent_upscale.weights import writing

ABOUT = {"architecture": "compact", "space": "sd15", "input": "raw", "figures": "{}"}
pytestmark = pytest.mark.usefixtures("one_thread")


def network(path: Path, seed: int, dim: int = 8, **about: str) -> dict[str, Tensor]:
    """Writes a small network's file in float16; its weights."""
    torch.manual_seed(seed)
    tensors = Compact(4, dim, 2, 2).to_state_dict()
    tensors = {key: value.half() for key, value in tensors.items()}
    writing.write(path, tensors, {**ABOUT, **about})
    return tensors


def average(tmp_path: Path, *arguments: str) -> int:
    return main(["average", *arguments, "--out", str(tmp_path / "mean.safetensors")])


@pytest.mark.parametrize(("shares", "parts"), [((), (0.5, 0.5)), (("3", "1"), (0.75, 0.25))])
def test_the_mean_is_by_shares(
    tmp_path: Path, shares: tuple[str, ...], parts: tuple[float, float]
) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    one, other = network(files[0], 1, data="mine"), network(files[1], 2, data="yours")
    chosen = ["--shares", *shares] if shares else []
    assert average(tmp_path, *map(str, files), *chosen) == 0
    mean = read(tmp_path / "mean.safetensors")
    assert mean.tensors.keys() == one.keys()
    for key, value in mean.tensors.items():
        wanted = parts[0] * one[key].double() + parts[1] * other[key].double()
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), wanted, atol=1e-7)
    # What was measured of the one is not true of the mean.
    assert mean.metadata["data"] == "mine" and "figures" not in mean.metadata
    assert lib_latent_upscale.load(tmp_path / "mean.safetensors").space.id == "sd15"


def test_what_cannot_be_averaged_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "other", "wide", "xl")]
    for seed, (file, dim) in enumerate(zip(files, (8, 8, 12, 8))):
        network(file, seed, dim, space="sdxl" if file.stem == "xl" else "sd15")
    one, other, wide, xl = map(str, files)
    for arguments, reason in (
        ([one], "two networks"),
        ([one, other, "--shares", "1"], "for each of the 2"),
        ([one, other, "--shares", "1", "-1"], "above 0"),
        ([one, other, "--shares", "1", "nan"], "above 0"),
        ([one, wide], "wide.safetensors is not the like of"),
        ([one, xl], "they differ in space"),
        ([one, str(tmp_path / "none.safetensors")], "no such file"),
    ):
        assert average(tmp_path, *arguments) == 2
        assert reason in capsys.readouterr().err
    assert main(["average", one, other, "--out", str(tmp_path / "mean.pt")]) == 2
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files}
