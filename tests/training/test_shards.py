"""Shards: what is written is what is read, in parts, and nothing else is taken for one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib_latent_upscale.spaces import FLUX, SD15, SDXL
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.shards import (
    FORMAT,
    Pair,
    PairSize,
    ShardReader,
    Source,
    common_factor,
    write_shard,
)


def pair(
    small: tuple[int, int],
    factor: str = "2",
    *,
    label: str = "a",
    channels: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    ratio = Fraction(factor)
    large = [int(side * ratio) for side in small]
    return Pair(
        torch.randn(channels, *large, generator=generator).to(dtype),
        torch.randn(channels, *small, generator=generator).to(dtype),
        Source(f"{label}/{seed}.png", label),
    )


def test_pairs_of_many_sizes_come_back(tmp_path: Path) -> None:
    pairs = [
        pair((8, 10), seed=1, label="b"),
        pair((12, 8), "5/4", seed=2),
        pair((8, 8), "3/2", seed=3, dtype=torch.float32),
    ]
    write_shard(tmp_path / "0.safetensors", pairs[:2], SD15, "vae")
    write_shard(tmp_path / "1.safetensors", pairs[2:], SD15, "vae")
    reader = ShardReader(tmp_path)
    assert len(reader) == 3
    assert reader.space is SD15
    assert reader.labels == ("a", "b")
    for index, one in enumerate(pairs):
        small, large = reader.pair(index)
        assert torch.equal(small, one.small.float())
        assert torch.equal(large, one.large.float())
        assert reader.source(index) == one.source
        assert reader.labels[reader.label(index)] == one.source.label
        assert reader.sizes(index) == PairSize(tuple(large.shape[1:]), tuple(small.shape[1:]))
    assert [str(reader.sizes(i).factor) for i in range(3)] == ["2", "5/4", "3/2"]
    assert common_factor(reader) is None
    assert common_factor(ShardReader(tmp_path / "1.safetensors")) == Fraction(3, 2)


def test_crops_are_the_same_place_of_both(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.safetensors", [pair((12, 16)), pair((12, 16), "5/4")], SD15, "vae")
    reader = ShardReader(tmp_path)
    small, large = reader.pair(0)
    one, other = reader.crop(0, 3, 5, 7)
    assert torch.equal(one, small[:, 3:10, 5:12])
    assert torch.equal(other, large[:, 6:20, 10:24])
    small, large = reader.pair(1)
    one, other = reader.crop(1, 4, 8, 8)
    assert torch.equal(one, small[:, 4:12, 8:16])
    assert torch.equal(other, large[:, 5:15, 10:20])
    assert (reader.grid(0), reader.grid(1)) == (1, 4)


@pytest.mark.parametrize("place", [(1, 0, 8), (0, 0, 7), (8, 0, 8), (-4, 0, 8), (0, 12, 8)])
def test_crops_off_the_grid_or_outside_are_refused(
    tmp_path: Path, place: tuple[int, int, int]
) -> None:
    write_shard(tmp_path / "0.safetensors", [pair((12, 16), "5/4")], SD15, "vae")
    with pytest.raises(ValueError, match="no square"):
        ShardReader(tmp_path).crop(0, *place)


def test_the_same_pairs_are_the_same_bytes(tmp_path: Path) -> None:
    pairs = [pair((8, 8), seed=seed) for seed in range(3)]
    for name in "ab":
        write_shard(tmp_path / f"{name}.safetensors", pairs, SD15, "vae")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    # safetensors orders several entries otherwise in each process, so two writes here prove little.
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert list(file.metadata()) == [FORMAT]
    assert not list(tmp_path.glob("*.part"))


def test_pairs_that_share_memory_are_written(tmp_path: Path) -> None:
    batch = torch.randn(2, 4, 16, 16)
    small = torch.randn(2, 4, 8, 8)
    pairs = [Pair(batch[i, :, 2:14, 2:14], small[i, :, 1:7, 1:7], Source("", "")) for i in (0, 1)]
    write_shard(tmp_path / "0.safetensors", pairs, SD15, "vae")
    assert torch.equal(ShardReader(tmp_path).pair(1)[1], batch[1, :, 2:14, 2:14])


def test_many_files_are_read_with_a_few_open(tmp_path: Path) -> None:
    for number in range(20):
        write_shard(tmp_path / f"{number:02}.safetensors", [pair((8, 8), seed=number)], SD15, "vae")
    reader = ShardReader(tmp_path)
    for _ in range(2):
        for index in range(20):
            assert torch.equal(reader.pair(index)[0], pair((8, 8), seed=index).small.float())
    assert len(reader._open) <= 8


def test_pairs_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    with pytest.raises(ValueError, match="4 channels, not 16"):
        write_shard(path, [pair((8, 8), channels=16)], SDXL, "vae")
    odd = Pair(torch.zeros(4, 16, 16), torch.zeros(4, 8, 9), Source("", ""))
    with pytest.raises(ValueError, match="one factor"):
        write_shard(path, [odd], SD15, "vae")
    assert not list(tmp_path.iterdir())


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such file"):
        ShardReader(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="no pairs"):
        ShardReader(tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, weights)
    with pytest.raises(TrainingError, match=r"weights\.safetensors is no shard"):
        ShardReader(weights)
    weights.write_bytes(b"no safetensors at all")
    with pytest.raises(TrainingError, match="is no shard"):
        ShardReader(tmp_path)


def test_shards_of_two_spaces_do_not_mix(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [pair((8, 8))], SD15, "vae")
    write_shard(tmp_path / "b.safetensors", [pair((8, 8), channels=16)], FLUX, "vae")
    with pytest.raises(TrainingError, match=r"sd15 in .*a\.safetensors, flux in"):
        ShardReader(tmp_path)
