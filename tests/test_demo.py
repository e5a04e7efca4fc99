"""The demo, and the preview decoder that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_latent_upscale import demo
from lib_latent_upscale.cli import main
from lib_latent_upscale.preview import load_preview_decoder, preview_weights
from lib_latent_upscale.spaces import SPACES, LatentSpace


def test_demo_shows_that_the_model_is_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    out = tmp_path / "folder" / "demo.png"
    assert main(["demo", "--out", str(out)]) == 0
    with image_module.open(out) as sheet:
        assert sheet.size == (3 * 520 + 8, 512 + 40 + 8)
        assert len(sheet.getcolors(1 << 24)) > 10_000  # pictures, not blank panels
    printed = capsys.readouterr().out
    assert printed.count(" dB, ") == 4
    assert str(out) in printed


def test_the_figures_are_those_of_the_panels(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    figures = demo.run(tmp_path / "demo.png")
    assert figures.keys() == {"bicubic", "bundled-sd15"}
    assert figures["bundled-sd15"] > figures["bicubic"] + 2


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_preview_decoders(space: LatentSpace) -> None:
    assert preview_weights(space).stat().st_size < 1_000_000
    decoder = load_preview_decoder(space)
    picture = decoder(torch.randn(2, space.channels, 9, 12))
    assert picture.shape == (2, 3, 72, 96)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert not decoder.training
