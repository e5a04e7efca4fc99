"""Two processes are, within rounding, one process with the doubled batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.checkpoints import Checkpoints
from lib_latent_upscale.training.shards import Pair, ShardReader, Source, write_shard
from lib_latent_upscale.training.stream import PairStream
from lib_latent_upscale.training.validation import hold_out

from .tiny import write_pairs

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]

SAME = {
    "adamw, accumulation": ["--accumulation", "2", "--clip", "0.05"],
    "fft and hfen": ["--loss", "fft=1", "--loss", "hfen=0.5", "--optimizer", "lamb"],
}


def arguments(out: Path, data: Path, batch: int, *more: str) -> list[str]:
    return [
        "train", "--recipe", "compact", "--data", str(data), "--out", str(out),
        "--batch", str(batch), "--steps", "6", "--crop", "8", "--threads", "1", "--device", "cpu",
        "--set", "network.dim=8", "--set", "network.depth=2", "--precision", "fp32",
        "--warm-up", "0", "--checkpoint-every", "2", "--log-every", "1", *more,
    ]  # fmt: skip


def two_processes(options: list[str]) -> None:
    """As torchrun starts them, each with the variables that tell it which it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "lib_latent_upscale.training", *options, "--backend", "gloo"],
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "step 6 of 6" in outputs[0] and "step 6 of 6" not in outputs[1]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_are_one_with_the_doubled_batch(name: str, tmp_path: Path) -> None:
    if "--optimizer" in SAME[name]:
        pytest.importorskip("pytorch_optimizer")
    data = write_pairs(tmp_path / "pairs")
    two_processes(arguments(tmp_path / "two", data, 2, *SAME[name]))
    assert main(arguments(tmp_path / "one", data, 4, *SAME[name])) == 0
    assert main(arguments(tmp_path / "half", data, 2, *SAME[name])) == 0
    two, one, half = (
        Checkpoints(tmp_path / run / "checkpoints").load_latest() for run in ("two", "one", "half")
    )
    assert two is not None and one is not None and half is not None
    assert two["step"] == one["step"] == 6
    # As near as rounding, which beside what the other's rows make is nothing.
    assert distance(two, one) < 1e-4 < 0.01 < distance(half, one)


def distance(run: dict[str, Any], other: dict[str, Any]) -> float:
    """Of all weights, relative to those of `other`."""
    mine, others = (torch.cat([w.flatten() for w in r["network"].values()]) for r in (run, other))
    return float((mine - others).norm() / others.norm())


def test_both_go_back_when_training_breaks(tmp_path: Path) -> None:
    """One process alone has the pair that is no number. The other must not wait for it for ever."""
    data = write_pairs(tmp_path / "pairs", 60)
    broken = torch.full((4, 32, 32), float("nan"))
    pair = Pair(broken, broken[:, ::2, ::2], Source("broken.png", ""))
    write_shard(data / "9.safetensors", [pair], SD15, "made up")
    seed = next(seed for seed in range(1000) if places(data, seed) == [3])
    two_processes(arguments(tmp_path / "two", data, 2, "--seed", str(seed)))
    state = Checkpoints(tmp_path / "two" / "checkpoints").load_latest()
    assert state is not None
    assert state["step"] == 6 and state["rollbacks"] == [2] and state["skipped"] == [2, 3]
    assert all(bool(torch.isfinite(weight).all()) for weight in state["network"].values())


def places(data: Path, seed: int) -> list[int]:
    """Where in the first ten batches of a run the broken pair is, without those held out."""
    reader, _ = hold_out(ShardReader(data), 64)
    stream = PairStream(reader, crop=8, batch=4, seed=seed)
    return [place for place in range(10) if not bool(stream.batch(place).small.isfinite().all())]
