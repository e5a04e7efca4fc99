"""The command that trains the small decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_latent_upscale.preview import PreviewDecoder, preview_weights
from lib_latent_upscale.spaces import RAW, SD3, SD15
from lib_latent_upscale.training import preview
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.codecs import Decoder
from lib_latent_upscale.training.shards import ShardReader
from lib_latent_upscale.training.vae import open_vae
from lib_latent_upscale.weights.reading import read_header

DATA = Path(__file__).parent.parent / "data" / "clipart-trained-sd15.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "decoder.safetensors"
    weights = Decoder(4, width=4).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def test_squares_are_shown_as_the_decoder_does(decoder: Path) -> None:
    torch.manual_seed(1)
    vae = open_vae(decoder, SD15)
    latents, pictures = preview.squares(ShardReader(DATA), vae, 11, torch.device("cpu"))
    assert latents.shape == (11, 4, 24, 24)
    assert latents.dtype == torch.float16
    with torch.no_grad():
        shown = vae.decode(SD15.unet.to(RAW, latents.float())) / 2 + 0.5
    assert torch.allclose(pictures / 255, shown.clamp(0, 1), atol=0.6 / 255)
    assert len({one.sum().item() for one in latents}) == 11


def test_the_command_trains_and_writes(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(preview, "HELD_OUT", 4)
    out = tmp_path / "preview.safetensors"
    said = ["preview", "--data", str(DATA), "--decoder", str(decoder), "--out", str(out)]
    said += ["--squares", "12", "--batch", "2", "--device", "cpu", "--precision", "fp32"]
    figures = []
    for steps in ("1", "30"):
        assert main([*said, "--steps", steps, "--learning-rate", "0.1"]) == 0
        figures.append(float(capsys.readouterr().out.split(" dB")[0].split()[-1]))
    assert figures[1] > figures[0] + 3
    assert read_header(out).metadata["space"] == "sd15"
    weights = load_file(out)
    assert {one.dtype for one in weights.values()} == {torch.float16}
    PreviewDecoder(4).load_state_dict(weights)
    assert main([*said, "--squares", "5"]) == 2
    assert main([*said, "--begin", str(tmp_path / "nothing.safetensors")]) == 2


def test_another_space_s_decoder_to_begin_from() -> None:
    given = load_file(preview_weights(SD15))
    begun = preview.begin(SD3.channels, preview_weights(SD15)).state_dict()
    assert begun["entry.weight"].shape[1] == 16
    same = {key for key, value in given.items() if torch.equal(value.float(), begun[key])}
    assert given.keys() - same == {"entry.weight"}
