"""The command line and the latent files it reads and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale import latent_files
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.cli import main
from lib_latent_upscale.latent_files import LatentFileError
from lib_latent_upscale.preview import load_preview_decoder
from lib_latent_upscale.spaces import SD3, SD15, SPACES, LatentSpace

from . import published


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", latent_files.SUFFIXES)
def test_files_round_trip(tmp_path: Path, latent: Tensor, suffix: str) -> None:
    path = tmp_path / f"latent{suffix}"
    latent_files.write(path, latent, SD15)
    assert torch.allclose(latent_files.read(path, SD15), latent, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_comfy_files_are_raw(tmp_path: Path) -> None:
    latent = torch.randn(1, 16, 4, 4)
    path = tmp_path / "latent.latent"
    latent_files.write(path, latent, SD3)
    raw = load_file(path)["latent_tensor"]
    assert torch.allclose(raw, latent / 1.5305 + 0.0609, atol=1e-5)
    assert torch.allclose(latent_files.read(path, SD3), latent, atol=1e-5)
    save_file({"latent_tensor": latent[:, :4].contiguous()}, path)  # of an old ComfyUI
    assert torch.allclose(latent_files.read(path, SD15), latent[:, :4])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 8, 8), "3 axes"),
        (torch.zeros(1, 16, 8, 8), "16 channels"),
        (torch.full((1, 4, 8, 8), torch.nan), "NaN"),
        (torch.full((1, 4, 8, 8), -torch.inf), "infinite"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int32), "int32"),
        (torch.zeros(1, 4, 0, 8), "empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_bad_latents_are_named(tmp_path: Path, tensor: Tensor, message: str, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    if suffix == ".npy":
        np.save(path, tensor.numpy())
    else:
        save_file({"latent": tensor}, path)
    with pytest.raises(LatentFileError, match=f"bad.*{message}"):
        latent_files.read(path, SD15)


@pytest.mark.parametrize("suffix", latent_files.SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"not a latent at all"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(LatentFileError, match="bad"):
        latent_files.read(path, SD15)


def test_objects_in_npy_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    np.save(path, np.array([object()], dtype=object))
    with pytest.raises(LatentFileError, match="bad"):
        latent_files.read(path, SD15)


def test_several_tensors_need_a_name(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, path)
    with pytest.raises(LatentFileError, match="2 tensors"):
        latent_files.read(path, SD15)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ([], (24, 32)),
        (["--scale", "1.5"], (18, 24)),
        (["--size", "30x17"], (30, 17)),
        (["--scale", "0.5"], (6, 8)),
    ],
)
def test_upscale(
    tmp_path: Path, latent: Tensor, arguments: list[str], size: tuple[int, int]
) -> None:
    source, out = tmp_path / "in.npy", tmp_path / "out.safetensors"
    np.save(source, latent.numpy())
    assert main(["upscale", str(source), str(out), *arguments]) == 0
    expected = lib_latent_upscale.load("bundled-sd15")(latent, size)
    assert torch.equal(latent_files.read(out, SD15), expected)


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_upscale_and_show(tmp_path: Path, space: LatentSpace) -> None:
    image = pytest.importorskip("PIL.Image")
    latents = torch.randn(2, space.channels, 8, 10, generator=torch.Generator().manual_seed(0))
    source, out = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(source, latents.numpy())
    shown = tmp_path / "folder" / "shown.png"
    said = ["--model", f"bundled-{space.id}", "--picture", str(shown)]
    assert main(["upscale", str(source), str(out), *said]) == 0
    with torch.no_grad():
        expected = load_preview_decoder(space)(latent_files.read(out, space))
    with image.open(shown) as picture:
        assert picture.size == (2 * 160, 128)
        found = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(found, torch.cat([*expected], dim=-1), atol=0.6 / 255)


def test_upscale_with_a_file(tmp_path: Path, latent: Tensor) -> None:
    model = tmp_path / "latent-upscaler-v2.1_SDv1-x1.5.safetensors"
    save_file(published.state_dict("city96_x1.5"), model)
    source, out = tmp_path / "in.latent", tmp_path / "out.latent"
    latent_files.write(source, latent, SD15)
    assert main(["upscale", str(source), str(out), "--model", str(model)]) == 0
    assert latent_files.read(out, SD15).shape == (1, 4, 18, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN", "out.npy", "--model", "nothing"], "neither a file nor one of the models"),
        (["IN", "out.npy", "--model", "sudo-drct-l-sdxl"], "could not be fetched"),
        (["IN", "out.png"], ".npy files"),
        (["nothing.npy", "out.npy"], "no such file"),
        (["IN", "out.npy", "--scale", "0"], "--scale"),
        (["IN", "nowhere/out.npy"], "cannot be written"),
        (["IN", "out.npy", "--picture", "shown.txt"], "ends in .png"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    latent: Tensor,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(tmp_path.parent / "models"))
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", latent.numpy())
    arguments = ["in.npy" if argument == "IN" else argument for argument in arguments]
    assert main(["upscale", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["in.npy"]


def test_bad_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["upscale", "a.npy", "b.npy", "--size", "12"])
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


def test_list_shows_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CATALOG)
    assert any(line.startswith("bundled-sd15 ") and "halfway-sd15" in line for line in lines)


def test_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lib_latent_upscale", "list"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert result.returncode == 0
    assert "Latent (SwinFIR 4x6)" in result.stdout
