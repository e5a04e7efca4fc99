"""VAEs of every kind of file: raw latents of pictures in -1..1, and errors for what is no VAE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_latent_upscale.spaces import FLUX, RAW, SD3, SD15, SDXL
from lib_latent_upscale.training import codecs, vae_files
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.vae import TinyVae, open_vae, to_images

CODECS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "codecs"
ALL = {SD15: "taesd", SDXL: "taesdxl", SD3: "taesd3", FLUX: "taef1"}


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_all() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1


def tiny_files(folder: Path, channels: int = 4) -> tuple[Path, Path]:
    """The files of a TAESD of little width and random weights."""
    torch.manual_seed(0)
    paths = folder / "encoder.safetensors", folder / "decoder.safetensors"
    save_file(codecs.Encoder(channels, 8).state_dict(), paths[0])
    save_file(codecs.Decoder(channels, 8).state_dict(), paths[1])
    return paths


class TestTiny:
    def test_pictures_and_latents_are_in_the_ranges_said(
        self, tmp_path: Path, pictures: Tensor
    ) -> None:
        encoder, decoder = tiny_files(tmp_path, 16)
        vae = open_vae(encoder, FLUX, decoder)
        latents = vae.encode(pictures)
        unet = codecs.load_encoder(encoder)((pictures + 1) / 2)
        torch.testing.assert_close((latents - 0.1159) * 0.3611, unet)
        decoded = codecs.load_decoder(decoder)(unet)
        torch.testing.assert_close(to_images(vae.decode(latents)), decoded)

    def test_half_of_a_pair_does_half_the_work(self, tmp_path: Path, pictures: Tensor) -> None:
        encoder, decoder = tiny_files(tmp_path)
        only = open_vae(encoder, SD15)
        assert (only.encodes, only.decodes) == (True, False)
        with pytest.raises(TrainingError, match="name the decoder's file too"):
            only.decode(only.encode(pictures))
        other = open_vae(decoder, SD15)
        assert (other.encodes, other.decodes) == (False, True)
        with pytest.raises(TrainingError, match="name the encoder's file"):
            other.encode(pictures)

    def test_decoding_has_gradients_and_the_weights_none(
        self, tmp_path: Path, pictures: Tensor
    ) -> None:
        vae = open_vae(*_mixed(tiny_files(tmp_path)))
        assert isinstance(vae, TinyVae) and vae.decoder is not None
        latents = vae.encode(pictures)
        assert not latents.is_inference()
        # Far out, where a clamp to -1..1 would have no gradient.
        torch.nn.init.constant_(vae.decoder[-1].bias, 9.0)
        latents.requires_grad_()
        vae.decode(latents).mean().backward()
        assert latents.grad is not None and latents.grad.abs().min() > 0
        assert not any(weight.requires_grad for weight in vae.decoder.parameters())

    def test_bf16_is_near(self, tmp_path: Path, pictures: Tensor) -> None:
        encoder, decoder = tiny_files(tmp_path)
        exact = open_vae(encoder, SD15, decoder)
        near = open_vae(encoder, SD15, decoder, precision="bf16")
        wanted, latents = exact.encode(pictures), near.encode(pictures)
        assert latents.dtype == near.decode(latents).dtype == torch.float32
        difference = (latents - wanted).std() / wanted.std()
        assert 0 < difference < 0.02
        # The last layer is not in bfloat16, so neither are the latents.
        assert not torch.equal(latents, latents.bfloat16().float())

    def test_sides_are_multiples_of_8(self, tmp_path: Path) -> None:
        vae = open_vae(tiny_files(tmp_path)[0], SD15)
        with pytest.raises(ValueError, match="multiples of 8"):
            vae.encode(torch.zeros(1, 3, 32, 36))

    def test_files_of_another_space_or_none_are_refused(self, tmp_path: Path) -> None:
        encoder, _ = tiny_files(tmp_path)
        with pytest.raises(TrainingError, match="4 channels, but SD3's have 16"):
            open_vae(encoder, SD3)
        torch.save({"1.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "odd.pth")
        with pytest.raises(TrainingError, match="no encoder or decoder of TAESD"):
            open_vae(encoder, SD15, tmp_path / "odd.pth")
        with pytest.raises(TrainingError, match="no such file"):
            open_vae(tmp_path / "nothing.safetensors", SD15)
        save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(TrainingError, match="holds no VAE: none of its 1 tensors"):
            open_vae(tmp_path / "other.safetensors", SD15)
        (tmp_path / "page.safetensors").write_text("<html>")
        with pytest.raises(TrainingError, match="cannot be read as a VAE"):
            open_vae(tmp_path / "page.safetensors", SD15)
        with pytest.raises(TrainingError, match=r"no VAE in diffusers' layout"):
            open_vae(tmp_path, SD15)


def _mixed(files: tuple[Path, Path]) -> tuple[Path, Any, Path]:
    return files[0], SD15, files[1]


@pytest.mark.skipif(not CODECS.is_dir(), reason="needs ../shared/reference/codecs")
@pytest.mark.parametrize("space", ALL, ids=lambda space: space.id)
def test_the_published_codecs_give_a_picture_back(space: Any) -> None:
    name = ALL[space]
    vae = open_vae(
        CODECS / f"{name}_encoder.safetensors", space, CODECS / f"{name}_decoder.safetensors"
    )
    across = torch.linspace(-0.8, 0.8, 64)
    picture = torch.stack(
        [across.expand(64, 64), across[:, None].expand(64, 64), -across.expand(64, 64)]
    )
    again = vae.decode(vae.encode(picture[None]))[0]
    assert (again - picture).abs().mean() < 0.1


@pytest.fixture(scope="module")
def diffusers() -> Any:
    try:
        return vae_files._diffusers()
    except TrainingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(diffusers: Any) -> Any:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
    )
    return model.eval()


class TestDiffusers:
    def seeds(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    def check(self, path: Path, model: Any, pictures: Tensor) -> None:
        vae = open_vae(path, SD15)
        with torch.no_grad():
            distribution = model.encode(pictures).latent_dist
        # A sample of the distribution: with its own noise, and no scaling factor.
        noise = torch.cat([torch.randn(1, 4, 4, 6, generator=one) for one in self.seeds()])
        wanted = distribution.mean + distribution.std * noise
        latents = vae.encode(pictures, self.seeds())
        torch.testing.assert_close(latents, wanted)
        torch.testing.assert_close(vae.encode(pictures[1:], self.seeds()[1:]), wanted[1:])
        with torch.no_grad():
            torch.testing.assert_close(vae.decode(latents), model.decode(wanted).sample)

    def test_files_of_diffusers(self, tmp_path: Path, model: Any, pictures: Tensor) -> None:
        save_file(model.state_dict(), tmp_path / "vae.safetensors")
        self.check(tmp_path / "vae.safetensors", model, pictures)

    def test_files_with_the_old_names_of_attention(
        self, tmp_path: Path, model: Any, pictures: Tensor
    ) -> None:
        names = {
            ".to_q.": ".query.",
            ".to_k.": ".key.",
            ".to_v.": ".value.",
            ".to_out.0.": ".proj_attn.",
        }
        old = {}
        for key, value in model.state_dict().items():
            for new, before in names.items():
                key = key.replace(new, before)
            old[key] = value
        assert "encoder.mid_block.attentions.0.proj_attn.bias" in old
        save_file(old, tmp_path / "vae.safetensors")
        self.check(tmp_path / "vae.safetensors", model, pictures)

    def test_whole_checkpoints_as_pickles(
        self, tmp_path: Path, model: Any, pictures: Tensor
    ) -> None:
        state = {f"first_stage_model.{k}": v for k, v in original_names(model).items()}
        state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(3)
        state["first_stage_model.loss.logvar"] = torch.zeros(1)
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.ckpt")
        self.check(tmp_path / "model.ckpt", model, pictures)

    def test_folders(self, tmp_path: Path, model: Any, pictures: Tensor) -> None:
        model.save_pretrained(tmp_path)
        self.check(tmp_path, model, pictures)
        with pytest.raises(TrainingError, match=r"a VAE of SD1\.5 .*not of SDXL"):
            open_vae(tmp_path, SDXL)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "UNet"}))
        with pytest.raises(TrainingError, match="is a UNet"):
            open_vae(tmp_path, SD15)

    def test_tiny_folders_give_raw_latents_too(
        self, tmp_path: Path, diffusers: Any, pictures: Tensor
    ) -> None:
        model = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
        )
        model.save_pretrained(tmp_path)
        vae = open_vae(tmp_path, SDXL)
        latents = vae.encode(pictures)
        with torch.no_grad():
            wanted = model.encode(pictures).latents
            torch.testing.assert_close(RAW.to(SDXL.unet, latents), wanted)
            torch.testing.assert_close(vae.decode(latents), model.decode(wanted).sample)

    def test_parts_of_a_vae_are_refused(self, tmp_path: Path, model: Any) -> None:
        state = model.state_dict()
        state.pop("decoder.conv_out.bias")
        save_file(state, tmp_path / "vae.safetensors")
        with pytest.raises(TrainingError, match=r"no whole VAE: \d+ tensors"):
            open_vae(tmp_path / "vae.safetensors", SD15)
        encoder = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}
        save_file(encoder, tmp_path / "encoder.safetensors")
        with pytest.raises(TrainingError, match="holds no VAE"):
            open_vae(tmp_path / "encoder.safetensors", SD15)
        save_file(model.state_dict(), tmp_path / "vae.safetensors")
        assert len(load_file(tmp_path / "vae.safetensors")) > 100
        with pytest.raises(TrainingError, match="4 channels, but FLUX's have 16"):
            open_vae(tmp_path / "vae.safetensors", FLUX)


def original_names(model: Any) -> dict[str, Tensor]:
    """The weights under the names of the original latent diffusion code."""
    levels = len(model.config.block_out_channels)
    renamed = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[1:2] == ["down_blocks"]:
            parts[1:5] = ["down", parts[2], *_inner(parts[3:5], "downsample")]
        elif parts[1:2] == ["up_blocks"]:
            level = str(levels - 1 - int(parts[2]))
            parts[1:5] = ["up", level, *_inner(parts[3:5], "upsample")]
        elif parts[1:2] == ["mid_block"]:
            where = f"block_{int(parts[3]) + 1}" if parts[2] == "resnets" else "attn_1"
            parts[1:4] = ["mid", where]
        name = ".".join(parts)
        for new, old in (
            ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
            ("attn_1.group_norm", "attn_1.norm"), ("attn_1.to_q", "attn_1.q"),
            ("attn_1.to_k", "attn_1.k"), ("attn_1.to_v", "attn_1.v"),
            ("attn_1.to_out.0", "attn_1.proj_out"),
        ):  # fmt: skip
            name = name.replace(new, old)
        linear = "attn_1" in name and value.ndim == 2
        renamed[name] = value[:, :, None, None] if linear else value
    return renamed


def _inner(parts: list[str], sampling: str) -> list[str]:
    return ["block", parts[1]] if parts[0] == "resnets" else [sampling]
