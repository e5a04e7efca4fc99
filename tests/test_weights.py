"""Finding and reading files of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import lib_latent_upscale
from lib_latent_upscale import MissingWeightsError, WeightsError
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.weights import files, reading

from . import published

SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]


def test_a_pickle_by_hand_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(published.small_state_dict("SwinFIR4x6"), tmp_path / SWINFIR.file.name)
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(tmp_path))
    up = lib_latent_upscale.load(SWINFIR.id)
    assert up.entry is SWINFIR
    assert up(torch.randn(1, 4, 8, 8), (16, 16)).shape == (1, 4, 16, 16)


def test_the_converted_file_comes_first(tmp_path: Path) -> None:
    for name in SWINFIR.file.local_names:
        (tmp_path / name).touch()
    assert files.find(SWINFIR, [tmp_path]).name == "SwinFIR4x6_mse_200k_1.5.safetensors"
    (tmp_path / "SwinFIR4x6_mse_200k_1.5.safetensors").unlink()
    (tmp_path / "SwinFIR4x6_mse_200k.safetensors").unlink()
    assert files.find(SWINFIR, [tmp_path]).name == "SwinFIR4x6_mse_200k_1.5.pth"


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    (tmp_path / "second" / SWINFIR.file.name).touch()
    found = files.find(SWINFIR, [tmp_path / "first", tmp_path / "second"])
    assert found.parent.name == "second"


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError) as error:
        files.find(SWINFIR, [tmp_path])
    for part in (SWINFIR.id, SWINFIR.file.name, str(SWINFIR.file.url), str(tmp_path)):
        assert part in str(error.value)


def test_a_missing_bundled_file_says_to_install_anew(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="ships with"):
        files.find(CATALOG["bundled-sd15"], [tmp_path])


def test_torch_load_as_a1111_replaces_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: None)
    assert reading.read(path).tensors.keys() == {"a"}


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="a list"):
        reading.read(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"\.safetensors, \.pth or \.pt"):
        (tmp_path / "model.ckpt").touch()
        reading.read(tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="no such file"):
        reading.read(tmp_path / "nothing.safetensors")


def test_the_pickle_and_its_conversion_have_one_sidecar(tmp_path: Path) -> None:
    (tmp_path / "a.v1.json").write_text('{"space": "sdxl", "scale": 1.5}', encoding="utf-8")
    for name in ("a.v1.pth", "a.v1.safetensors"):
        assert reading.sidecar(tmp_path / name) == {"space": "sdxl", "scale": "1.5"}
    assert reading.sidecar(tmp_path / "a.pth") == {}


def test_short_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert files.short_hash(path) == hashlib.sha256(b"one").hexdigest()[:10]
    path.write_bytes(b"three")
    assert files.short_hash(path) == hashlib.sha256(b"three").hexdigest()[:10]
