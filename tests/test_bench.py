"""The benchmark: that it measures the published configurations, and says what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lib_latent_upscale import compiling
from lib_latent_upscale.architectures.layers import kernels
from lib_latent_upscale.bench import __main__ as bench
from lib_latent_upscale.bench.jobs import two_jobs
from lib_latent_upscale.bench.measure import Seconds, interleaved, operations, peak_bytes, ratio
from lib_latent_upscale.bench.networks import MODELS, Model
from lib_latent_upscale.bench.reference import published as published_code
from lib_latent_upscale.bench.report import HEADER

from . import published
from .golden import synthetic


@pytest.mark.parametrize("name", [name for name in MODELS if name in published.MODELS])
def test_configurations_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name].network(**MODELS[name].hyperparameters)
    shapes = {key: tuple(value.shape) for key, value in model.to_state_dict().items()}
    expected = {key: shape for key, shape, _, role in synthetic.manifest(name) if role == "weight"}
    assert shapes == expected


def test_operations_are_counted() -> None:
    model = MODELS["compact"]
    # Two convolutions to and from the features, ten blocks of two, and the wide one.
    multiplications = 9 * 64 * (4 + 10 * 2 * 64 + 4 * 64 + 4 * 4)
    assert operations(model, model.build(), 16) == 2 * multiplications * 16 * 16


def test_products_that_are_added_in_place_are_counted() -> None:
    def call(network: nn.Module, x: Tensor) -> Tensor:
        return network(x).flatten(0, 1).baddbmm_(torch.empty(4, 8, 3).to(x), x[0, :, :3])

    count = operations(cast(Model, SimpleNamespace(call=call)), nn.Identity(), 8)
    assert count == 2 * 4 * 8 * 8 * 3


def test_peak_memory() -> None:
    def call() -> None:
        first = torch.zeros(1_000_000)
        second = first + 1
        del first
        second + 1

    assert peak_bytes(call, "cpu") == pytest.approx(8_000_000, rel=0.01)


def test_rounds_and_ratios() -> None:
    order: list[str] = []
    seconds = interleaved([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 3
    assert [len(taken) for taken in seconds] == [3, 3]
    slow = [Seconds(2, 3), Seconds(40, 4), Seconds(6, 5)]
    fast = [Seconds(1, 1), Seconds(10, 1), Seconds(2, 1)]
    assert ratio(slow, fast) == Seconds(3, 4)


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    arguments = [
        "--models",
        "compact",
        "ttl",
        "--sizes",
        "16",
        "--repeats",
        "2",
        "--dtypes",
        "float32",
        "bfloat16",
    ]
    files = ["--json", str(tmp_path / "a" / "b.json"), "--plot", str(tmp_path / "c.png")]
    assert bench.main([*arguments, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| compact | 16x16 ") for line in lines) == 2
    report = json.loads((tmp_path / "a" / "b.json").read_text())
    assert [(row["model"], row["dtype"]) for row in report["rows"]] == [
        (model, dtype) for model in ("compact", "ttl") for dtype in ("float32", "bfloat16")
    ]
    assert report["torch"] == torch.__version__
    row = report["rows"][0]
    assert row["gflop_per_s"] == pytest.approx(1e3 * row["gflop"] / row["median_ms"])
    assert row["peak_mb"] > 0.1 and row["ratio"] is None
    assert row["first_job"]["loads"] == 1 and row["second_job"]["loads"] == 0
    assert row["compiled_ms"] is None
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SwinFIR4x6", "city96_x2.0", "ttl", "compact"])
def test_a_second_job_loads_copies_and_computes_nothing(name: str, dtype: torch.dtype) -> None:
    layers = sum(hasattr(module, "packed") for module in MODELS[name].build().modules())
    packed = layers if kernels.usable(torch.ones(1, dtype=dtype)) else 0
    first, second = two_jobs(MODELS[name], 16, "cpu", dtype)
    assert first.loads == 1
    assert first.copies == (dtype != torch.float32)
    # Two kinds of windows, and a position bias for each block; and each layer's weights, packed.
    assert first.constants == packed + (2 + 24 if name == "SwinFIR4x6" else 0)
    assert (second.loads, second.copies, second.constants) == (0, 0, 0)
    assert first.ms > 0 and second.ms > 0


def test_compiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiling, "compiled", lambda recording: recording.module())
    arguments = ["--models", "compact", "--sizes", "16", "--repeats", "1", "--dtypes", "float32"]
    assert bench.main([*arguments, "--compile"]) == 0
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    header = [cell.strip() for cell in HEADER.splitlines()[0].split("|")]
    assert float(cells[header.index("compiled ms")]) > 0
    assert float(cells[header.index("its ratio")]) > 0

    def fails(recording: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "compiled", fails)
    with pytest.raises(RuntimeError, match="no compiler"):
        bench.main([*arguments, "--compile"])


def test_beside_published_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a folder that has what the adapter asks of the published one."""
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "swinfir_arch.py").write_text(
        "from timm.models.layers import DropPath, to_2tuple, trunc_normal_\n"
        "from lib_latent_upscale.bench.networks import MODELS\n"
        "def SwinFIR(embed_dim, **_):\n"
        "    assert embed_dim == 96\n"
        "    return MODELS['SwinFIR4x6'].build()\n"
    )
    arguments = ["--models", "SwinFIR4x6", "--sizes", "16", "--repeats", "1", "--dtypes", "float32"]
    assert bench.main([*arguments, "--reference", str(tmp_path)]) == 0
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    header = [cell.strip() for cell in HEADER.splitlines()[0].split("|")]
    assert cells[header.index("error")].strip() == "0.0e+00"
    assert float(cells[header.index("ratio")]) > 0
    assert "arch" not in sys.modules
    assert published_code(tmp_path, "compact", MODELS["compact"].build()) is None
