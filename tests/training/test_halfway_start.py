"""The weights that halfway begins from: a codec's halves, and the best joint between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import lib_latent_upscale
from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.architectures.layers.tokens import to_picture, to_tokens
from lib_latent_upscale.training import halfway
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.codecs import Decoder, Encoder

DATA = Path(__file__).parent.parent / "data" / "clipart-unseen-sd15.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def codec() -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    return Encoder(4, width=8).eval(), Decoder(4, width=8).eval()


def latents(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 4, 12, 12, generator=generator) for _ in range(count)]


def test_its_halves_are_the_codec_s(codec: tuple[Encoder, Decoder]) -> None:
    encoder, decoder = codec
    network = halfway.joined(encoder, decoder, latents(4))
    (x,) = latents(1)
    x = x / 100  # where the decoder's soft clamp does nothing
    with torch.no_grad():
        middle = nn.Sequential(*list(decoder)[:11])(x)
        features = to_picture(network.unfolded(x))
        assert torch.allclose(features, middle, rtol=1e-3, atol=1e-5)
        end = nn.Sequential(*list(encoder)[-4:])(middle)
        folded = network.conv_last(network.folding(to_tokens(middle)))
        assert torch.allclose(to_picture(folded), end, atol=1e-6)
        plain = F.interpolate(features, size=(18, 20), mode="bilinear")
        assert torch.equal(network.resampled(features, (18, 20)), plain)
    assert len(network.coarse) > 3  # those above changed nothing


def test_no_other_joint_is_nearer(codec: tuple[Encoder, Decoder]) -> None:
    encoder, decoder = codec
    given = latents(24)
    network = halfway.joined(encoder, decoder, given)

    def error(network: Halfway) -> float:
        total = 0.0
        with torch.no_grad():
            for x in given:
                large = F.interpolate(decoder(x), scale_factor=2, mode="bicubic").clamp(0, 1)
                wanted = nn.Sequential(*list(encoder)[:-4])(large)
                folded = to_picture(network.fold(network.unfolded(x)))
                total += float((folded - wanted).square().mean())
        return total

    best = error(network)
    generator = torch.Generator().manual_seed(2)
    for weight in (network.fold.weight, network.fold.bias):
        for sign in (1, -1):
            kept = weight.detach().clone()
            with torch.no_grad():
                # Small beside the weights, large beside what the ridge moves them.
                step = torch.randn(weight.shape, generator=generator) * kept.abs().mean()
                weight.add_(step * 0.1 * sign)
            assert error(network) > best
            with torch.no_grad():
                weight.copy_(kept)


def test_the_command_writes_what_training_begins_from(
    codec: tuple[Encoder, Decoder], tmp_path: Path
) -> None:
    files = [tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"]
    for module, file in zip(codec, files):
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, file)
    out = tmp_path / "start-sd15.safetensors"
    said = ["--data", str(DATA), "--vae", str(files[0]), "--decoder", str(files[1])]
    assert main(["halfway", *said, "--out", str(out), "--pairs", "2"]) == 0
    upscaler = lib_latent_upscale.load(out)
    assert upscaler.network.architecture == "halfway"
    assert upscaler(latents(1)[0], (24, 24)).shape == (1, 4, 24, 24)
    # Without a decoder there is nothing to begin from.
    assert main(["halfway", *said[:4], "--decoder", str(files[0]), "--out", str(out)]) == 2
