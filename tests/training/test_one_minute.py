"""From pairs to an upscaler that works: trained, exported, listed, loaded, better than bicubic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import lib_latent_upscale
from lib_latent_upscale.preview import load_preview_decoder
from lib_latent_upscale.spaces import RAW, SD15
from lib_latent_upscale.training import __main__, metrics
from lib_latent_upscale.training.shards import ShardReader
from lib_latent_upscale.weights import hand_placed

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
TRAINED, UNSEEN = (DATA / f"clipart-{kind}-sd15.safetensors" for kind in ("trained", "unseen"))

TRAIN = (
    "train --recipe compact --set network.dim=32 --set network.depth=4 --crop 12 --batch 8 "
    "--steps 500 --warm-up 20 --learning-rate 2e-3 --ema 0.97 --precision fp32 --device cpu "
    "--threads 2 --validate-every 250 --sample-every 0 --checkpoint-every 250"
)
"""The recipe, on a network of a tenth of its size, for half a minute on two idle cores."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    data = ["--data", str(TRAINED), "--validate", str(UNSEEN), "--out", str(folder)]
    command = [sys.executable, "-m", "lib_latent_upscale.training", *TRAIN.split(), *data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_what_is_trained_on_is_not_what_is_measured_on() -> None:
    seen, unseen = ShardReader(TRAINED), ShardReader(UNSEEN)
    pictures = [{one.source(i).picture for i in range(len(one))} for one in (seen, unseen)]
    assert not pictures[0] & pictures[1]
    assert (len(seen), len(pictures[0]), len(unseen)) == (94, 47, 4)


def test_after_a_minute_it_is_better_than_bicubic(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "models" / "mine.safetensors"
    assert __main__.main(["export", str(run), "--out", str(path), "--label", "My own"]) == 0
    said = capsys.readouterr().out
    assert "clipart-trained-sd15.safetensors" in said
    (entry,) = hand_placed.scan([path.parent]).entries
    assert (entry.label, entry.space, entry.factor) == ("Latent (My own)", SD15, 2)
    assert entry.architecture == "compact"

    upscaler, decoder = lib_latent_upscale.load(path), load_preview_decoder(SD15)
    reader, gains = ShardReader(UNSEEN), []
    for index in range(len(reader)):
        small, large = (RAW.to(SD15.unet, one[None]) for one in reader.pair(index))
        size = (large.shape[-2], large.shape[-1])
        ours = upscaler(small, size)
        bicubic = F.interpolate(small, size=size, mode="bicubic", antialias=True)
        picture = reader.source(index).picture
        assert metrics.l1(ours, large) < 0.9 * metrics.l1(bicubic, large), picture
        with torch.no_grad():
            reference, better, worse = (decoder(one) for one in (large, ours, bicubic))
        gains.append(metrics.psnr(better, reference) - metrics.psnr(worse, reference))
        assert gains[-1] > 0, picture
    assert sum(gains) / len(gains) > 0.8  # dB


def test_the_run_says_what_it_did(run: Path) -> None:
    for name in ("settings.json", "report.html", "log.txt", "weights/best.safetensors"):
        assert (run / name).stat().st_size > 0
