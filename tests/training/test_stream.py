"""The stream: a function of seed and step, the same for any number of processes."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.shards import Pair, ShardReader, Source, write_shard
from lib_latent_upscale.training.stream import Batch, PairStream


def place_coded(height: int, width: int, up: int, down: int, number: int) -> Pair:
    """A pair whose latents tell pair, row and column of every pixel, in the large one's pixels."""
    rows, columns = torch.meshgrid(
        torch.arange(height * up // down), torch.arange(width * up // down), indexing="ij"
    )
    large = torch.stack([rows, columns, torch.full_like(rows, number), rows * 0]).float()
    # The small latent's pixels start at multiples of the factor.
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    small = torch.stack([rows, columns, torch.full_like(rows, number), rows * 0]).float()
    small[:2] *= up / down
    return Pair(large, small, Source(f"{number}.png", "abc"[number % 3]))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("shards")
    pairs = [
        place_coded(24, 32, 2, 1, 0),
        place_coded(16, 16, 2, 1, 1),
        place_coded(16, 20, 5, 4, 2),
        place_coded(8, 8, 2, 1, 3),
    ]
    write_shard(folder / "0.safetensors", pairs[:3], SD15, "vae")
    write_shard(folder / "1.safetensors", pairs[3:], SD15, "vae")
    return ShardReader(folder)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.small, other.small)
        and torch.equal(one.large, other.large)
        and torch.equal(one.labels, other.labels)
    )


@given(
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**9),
    world=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_processes_share_the_batch_of_one(
    reader: ShardReader, seed: int, step: int, world: int, batch: int
) -> None:
    whole = PairStream(reader, crop=12, batch=batch * world, seed=seed).batch(step)
    for rank in range(world):
        part = PairStream(reader, crop=12, batch=batch, seed=seed, rank=rank, world=world)
        rows = slice(rank, None, world)
        expected = Batch(whole.small[rows], whole.large[rows], whole.labels[rows])
        assert same(part.batch(step), expected)


@given(seed=st.integers(0, 2**32), step=st.integers(0, 1000), crop=st.integers(4, 16))
def test_both_crops_are_of_one_place(reader: ShardReader, seed: int, step: int, crop: int) -> None:
    batch = PairStream(reader, crop=crop, batch=4, seed=seed).batch(step)
    side = batch.small.shape[-1]
    assert side == (crop if batch.factor == 2 else crop // 4 * 4)
    assert batch.large.shape == (4, 4, round(side * batch.factor), round(side * batch.factor))
    assert batch.small.dtype == batch.large.dtype == torch.float32
    assert torch.equal(batch.small[:, :3, 0, 0], batch.large[:, :3, 0, 0])
    numbers = batch.small[:, 2, 0, 0].long()
    assert torch.equal(batch.labels, numbers % 3)


def test_a_later_start_goes_on_where_the_earlier_was(reader: ShardReader) -> None:
    stream = PairStream(reader, crop=8, batch=2, seed=5)
    wanted = [stream.batch(step) for step in range(6)]
    for ahead in (0, 1, 3):
        for first in (0, 4):
            batches = PairStream(reader, crop=8, batch=2, seed=5).batches(first, ahead=ahead)
            for step in range(first, 6):
                number, batch = next(batches)
                assert number == step
                assert same(batch, wanted[step])
            batches.close()
    assert not same(wanted[0], wanted[1])
    assert not same(wanted[0], PairStream(reader, crop=8, batch=2, seed=6).batch(0))


def test_the_thread_ends_with_the_stream_and_passes_errors_on(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaders() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "pairs"]

    stream = PairStream(reader, crop=8, batch=2, seed=5)
    batches = stream.batches()
    next(batches)
    assert loaders()
    batches.close()
    assert not loaders()

    def broken(index: int, top: int, left: int, side: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(reader, "crop", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream.batches())
    assert not loaders()


def test_pairs_are_drawn_by_their_area_or_evenly(reader: ShardReader) -> None:
    for weighting, share in (("area", 17 * 25 / (17 * 25 + 9 * 9 + 1)), ("even", 1 / 3)):
        stream = PairStream(reader, crop=8, batch=64, seed=1, factor=2, weighting=weighting)
        drawn: Counter[int] = Counter()
        for step in range(40):
            drawn.update(stream.batch(step).small[:, 2, 0, 0].long().tolist())
        assert abs(drawn[0] / 2560 - share) < 0.04
        assert drawn[2] == 0
        assert stream.pairs == 3


def test_every_place_is_drawn(reader: ShardReader) -> None:
    stream = PairStream(reader, crop=12, batch=64, seed=1, factor=1.25)
    places = {
        (int(row), int(column))
        for step in range(5)
        for row, column in stream.batch(step).large[:, :2, 0, 0]
    }
    assert places == {(row, column) for row in (0, 5) for column in (0, 5, 10)}


def test_what_cannot_be_drawn_is_said(reader: ShardReader) -> None:
    with pytest.raises(TrainingError, match=r"room for a small latent of 40x40.*24 wide"):
        PairStream(reader, crop=40, batch=1, seed=0)
    with pytest.raises(TrainingError, match=r"at factor 1\.5.*factors are 2, 5/4"):
        PairStream(reader, crop=8, batch=1, seed=0, factor=1.5)
    with pytest.raises(TrainingError, match="area or even, not 'odd'"):
        PairStream(reader, crop=8, batch=1, seed=0, weighting="odd")
    with pytest.raises(ValueError, match="rank 2 of 2"):
        PairStream(reader, crop=8, batch=1, seed=0, rank=2, world=2)


def test_it_reads_from_a_path_of_text(reader: ShardReader, tmp_path: Path) -> None:
    again = ShardReader([str(file) for file in reader.files])
    one = PairStream(again, crop=8, batch=2, seed=3).batch(1)
    assert same(one, PairStream(reader, crop=8, batch=2, seed=3).batch(1))
