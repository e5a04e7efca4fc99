"""The statistics warn of what the author warns of, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_latent_upscale.spaces import FLUX, RAW, SD3, SD15, SDXL, LatentSpace
from lib_latent_upscale.training import inspecting, usual_latents
from lib_latent_upscale.training.codecs import load_encoder
from lib_latent_upscale.training.shards import Pair, ShardReader, Source, write_shard
from lib_latent_upscale.training.usual_latents import Moments
from lib_latent_upscale.training.vae import open_vae

ROOT = Path(__file__).resolve().parents[2]
CODECS = ROOT.parent / "shared" / "reference" / "codecs"
SPACES = [SD15, SDXL, SD3, FLUX]


def drawn(moments: Moments, count: int = 6) -> Tensor:
    """Latents (count, C, 32, 32) with these moments, soft as latents are."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, len(moments.mean), 8, 8, generator=generator)
    soft = torch.nn.functional.interpolate(noise, (32, 32), mode="bilinear")
    soft = (soft - soft.mean((0, 2, 3), keepdim=True)) / soft.std((0, 2, 3), keepdim=True)
    mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (moments.mean, moments.std))
    return soft * std + mean


def reader_of(
    folder: Path, large: Tensor, space: LatentSpace, small: Tensor | None = None
) -> ShardReader:
    if small is None:
        small = torch.nn.functional.avg_pool2d(large, 2)
    pairs = [Pair(one, other, Source("a.png", "a")) for one, other in zip(large, small)]
    write_shard(folder / "0.safetensors", pairs, space, "vae")
    return ShardReader(folder)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.id)
def test_usual_latents_are_no_cause_for_warnings(tmp_path: Path, space: LatentSpace) -> None:
    reader = reader_of(tmp_path, drawn(usual_latents.RIGHT[space.id]), space)
    found = inspecting.statistics(reader)
    assert found.pairs == 6
    assert found.agreement > 0.95
    assert found.mean == pytest.approx(usual_latents.RIGHT[space.id].mean, abs=0.01)
    assert found.std == pytest.approx(usual_latents.RIGHT[space.id].std, rel=0.01)
    assert inspecting.check(reader) == []


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.id)
def test_each_mistake_is_named(tmp_path: Path, space: LatentSpace) -> None:
    mistakes = list(inspecting.mistakes(space))
    assert len(mistakes) == 9
    for number, (name, moments) in enumerate(mistakes):
        folder = tmp_path / str(number)
        folder.mkdir()
        (said,) = inspecting.check(reader_of(folder, drawn(moments), space))
        assert f"not those of raw {space.label} latents: these look like {name}." in said


def test_the_mistakes_are_those_that_latents_would_have() -> None:
    """What `mistakes` computes beside what the mistakes themselves do to latents."""
    latents = drawn(usual_latents.RIGHT["sd3"]).double()
    scaled = RAW.to(SD3.unet, latents)
    (moments,) = [m for name, m in inspecting.mistakes(SD3) if name.endswith("1.5305 applied")][:1]
    assert moments.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-3)
    assert moments.std == pytest.approx(scaled.std((0, 2, 3)).tolist(), rel=1e-3)


def test_what_is_like_nothing_known_is_warned_of(tmp_path: Path) -> None:
    odd = Moments((20.0, -30.0, 10.0, 40.0), (0.1, 60.0, 0.2, 3.0))
    (said,) = inspecting.check(reader_of(tmp_path, drawn(odd), SD15))
    assert "not those of raw SD1.5 latents" in said


def test_values_that_are_no_numbers_and_pairs_that_do_not_belong_together(tmp_path: Path) -> None:
    large = drawn(usual_latents.RIGHT["sd15"])
    small = torch.nn.functional.avg_pool2d(large, 2).roll(1, 0)
    large[1, 2, 3, 4] = torch.nan
    small[1, 0, 0, 0] = torch.inf
    reader = reader_of(tmp_path, large, SD15, small)
    assert inspecting.statistics(reader).not_finite == 2
    first, second = inspecting.check(reader)
    assert first.startswith("2 values of the latents are infinite or no numbers")
    assert "hardly agree" in second
    for number, bad in enumerate((large * torch.nan, large)):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = inspecting.check(reader_of(folder, bad[:2], SD15))
        assert len(said) >= 1


def test_many_pairs_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(tmp_path, drawn(usual_latents.RIGHT["sd15"], 9), SD15)
    read: list[int] = []
    pair: Callable[[int], tuple[Tensor, Tensor]] = reader.pair
    monkeypatch.setattr(reader, "pair", lambda index: read.append(index) or pair(index))
    monkeypatch.setattr(inspecting, "_SAMPLE", 5)
    assert inspecting.statistics(reader).pairs == 5
    assert read == [0, 2, 4, 6, 8]


@pytest.fixture(scope="module")
def picture() -> Tensor:
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(data.astronaut()).resize((256, 256), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.skipif(not CODECS.is_dir(), reason="needs ../shared/reference/codecs")
class TestRealLatents:
    """The demo's picture, by real encoders: rightly, and with the mistakes made."""

    @pytest.mark.parametrize("space", SPACES, ids=lambda space: space.id)
    def test_rightly(self, tmp_path: Path, picture: Tensor, space: LatentSpace) -> None:
        name = {"sd15": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}[space.id]
        vae = open_vae(CODECS / f"{name}_encoder.safetensors", space)
        large, small = self.pair(vae.encode, picture)
        assert inspecting.check(reader_of(tmp_path, large, space, small)) == []

    @pytest.mark.parametrize(
        ("mistake", "name"),
        [
            (lambda vae, x: vae.encode((x + 1) / 2), "pictures in 0..1"),
            (lambda vae, x: vae.encode(x) * 0.18215, "0.18215 applied"),
            (lambda vae, x: load_encoder(CODECS / "taesd_encoder.safetensors")((x + 1) / 2),
             "0.18215 applied"),
        ],
    )  # fmt: skip
    def test_with_mistakes(
        self, tmp_path: Path, picture: Tensor, mistake: Callable[..., Tensor], name: str
    ) -> None:
        vae = open_vae(CODECS / "taesd_encoder.safetensors", SD15)
        with torch.no_grad():
            large, small = self.pair(lambda x: mistake(vae, x), picture)
        (said,) = inspecting.check(reader_of(tmp_path, large, SD15, small))
        assert name in said

    def pair(self, encode: Callable[[Tensor], Tensor], picture: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.nn.functional.interpolate(picture, scale_factor=0.5, mode="area")
        return encode(picture), encode(half)


def test_numbers_of_channels() -> None:
    for space in SPACES:
        for table in (usual_latents.RIGHT, usual_latents.FROM_0_TO_1):
            moments = table[space.id]
            assert len(moments.mean) == len(moments.std) == space.channels
            assert min(moments.std) > 0
            assert json.dumps(moments.mean)
