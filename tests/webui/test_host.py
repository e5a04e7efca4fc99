"""Which latent space a checkpoint has, asked of every host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_latent_upscale.webui.host import checkpoint_file_space, checkpoint_space

from .double import VARIANTS, checkpoint

A_KEY = {
    "sd15": "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    "sdxl": "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
    "sd3": "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias",
    "flux": "model.diffusion_model.double_blocks.0.img_attn.qkv.bias",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("space", ["sd15", "sdxl", "sd3", "flux"])
def test_space_of_a_loaded_checkpoint(variant: str, space: str) -> None:
    found = checkpoint_space(checkpoint(variant, space))
    assert found is not None and found.id == space


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_vae_is_unknown(variant: str) -> None:
    assert checkpoint_space(checkpoint(variant, "unknown")) is None


@pytest.mark.parametrize("model", [None, object()])
def test_no_checkpoint_is_unknown(model: object) -> None:
    assert checkpoint_space(model) is None


@pytest.mark.parametrize("space", list(A_KEY))
def test_space_of_a_file(tmp_path: Path, space: str) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"first_stage_model.x": torch.zeros(1), A_KEY[space]: torch.zeros(1)}, path)
    found = checkpoint_file_space(path)
    assert found is not None and found.id == space


@pytest.mark.parametrize("key", ["joint_blocks.0.x", "double_blocks.0.x"])
def test_space_of_a_diffusion_model_alone(tmp_path: Path, key: str) -> None:
    path = tmp_path / "any.safetensors"
    save_file({key: torch.zeros(1)}, path)
    found = checkpoint_file_space(str(path))
    assert found is not None and found.id == ("sd3" if key[0] == "j" else "flux")


def test_files_that_do_not_tell(tmp_path: Path) -> None:
    untold, broken, pickle = (tmp_path / n for n in ("a.safetensors", "b.safetensors", "c.ckpt"))
    save_file({"something": torch.zeros(1)}, untold)
    broken.write_bytes(b"nothing")
    pickle.write_bytes(b"nothing")
    missing = tmp_path / "d.safetensors"
    assert [checkpoint_file_space(p) for p in (untold, broken, pickle, missing)] == [None] * 4
