"""The weights that halfway begins from: a codec's halves, and the best joint between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import lib_latent_upscale
from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.architectures.layers.tokens import to_picture, to_tokens
from lib_latent_upscale.spaces import RAW, SPACES
from lib_latent_upscale.training import halfway, halves
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.codecs import Decoder, Encoder
from lib_latent_upscale.training.criterion import Criterion, Term
from lib_latent_upscale.training.shards import ShardReader
from lib_latent_upscale.training.stream import PairStream
from lib_latent_upscale.training.vae import TinyVae

DATA = Path(__file__).parent.parent / "data" / "clipart-unseen-sd15.safetensors"
OTHER = "compact-sd15-x2.safetensors"
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
        lower = F.interpolate(features, size=(18, features.shape[3]), mode="bilinear")
        plain = F.interpolate(lower, size=(18, 20), mode="bilinear")
        assert torch.equal(network.resampled(features, (18, 20)), plain)
    assert len(network.coarse) > 3  # those above changed nothing


def test_no_other_joint_is_nearer(codec: tuple[Encoder, Decoder]) -> None:
    encoder, decoder = codec
    given = latents(24)
    network = halfway.joined(encoder, decoder, given)

    def wanted(x: Tensor) -> Tensor:
        large = F.interpolate(decoder(x), scale_factor=2, mode="bicubic").clamp(0, 1)
        return nn.Sequential(*list(encoder)[:-4])(large)

    assert_no_joint_is_nearer(network, given, wanted)


def test_halves_are_joined_by_what_reads_enlarges_and_takes(
    codec: tuple[Encoder, Decoder],
) -> None:
    given = latents(24)
    network = halfway.joined(*codec, given)
    torch.nn.init.ones_(network.phase.weight)
    reading, writing = halves.Reading(network), halves.Writing(network)
    halves.join(reading, writing, given)

    def wanted(x: Tensor) -> Tensor:
        large = F.interpolate(reading(x).clamp(-1, 1), scale_factor=2, mode="bicubic")
        return writing.take(F.pixel_unshuffle(large.clamp(-1, 1), 8))

    assert_no_joint_is_nearer(network, given, wanted)
    assert not network.phase.weight.any()


def assert_no_joint_is_nearer(
    network: Halfway, given: list[Tensor], wanted: Callable[[Tensor], Tensor]
) -> None:
    """Other weights and biases of `fold` are further from what is wanted for the latents."""

    def error(network: Halfway) -> float:
        with torch.no_grad():
            folded = ((to_picture(network.fold(network.unfolded(x))), wanted(x)) for x in given)
            return sum(float((one - other).square().mean()) for one, other in folded)

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


def test_each_half_learns_its_own_task_and_leaves_the_other() -> None:
    torch.manual_seed(0)  # wide enough for weights that Muon takes for inner ones
    encoder, decoder = Encoder(4, width=32).eval(), Decoder(4, width=32).eval()
    network = halfway.joined(encoder, decoder, latents(4))
    vae = TinyVae(SPACES["sd15"], "tiny", encoder, decoder.requires_grad_(False))
    stream = PairStream(ShardReader(DATA), crop=8, batch=4, seed=0, factor=2, weighting="even")
    batch = stream.batch(10_000)
    reading, writing = halves.Reading(network), halves.Writing(network)
    criterion = Criterion([Term("l1", 1.0)])
    unet = SPACES["sd15"].unet
    halves.begin(reading, writing, vae, [one[None] for one in RAW.to(unet, stream.batch(0).small)])

    def state(part: nn.Module) -> list[Tensor]:
        return [value.clone() for value in part.state_dict().values()]

    def same(part: nn.Module, before: list[Tensor]) -> bool:
        return all(torch.equal(*both) for both in zip(state(part), before))

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        picture = vae.decode(batch.small).clamp(-1, 1)
        latent = writing(halves.enlarged(picture))
        return (
            float((reading(RAW.to(unet, batch.small)) - picture).square().mean()),
            float((latent - RAW.to(unet, batch.large)).abs().mean()),
        )

    first, second = (network.coarse, network.fine), (network.folding, network.conv_last)
    before, kept = errors(), [state(part) for part in second]
    halves.learn_reading(reading, vae, stream, 40)
    assert errors()[0] < before[0] * 0.8
    assert all(same(*both) for both in zip(second, kept))
    kept = [state(part) for part in first]
    halves.learn_writing(writing, vae, criterion, stream, 40)
    assert errors()[1] < before[1] * 0.97
    assert all(same(*both) for both in zip(first, kept))


def test_the_command_writes_what_training_begins_from(
    codec: tuple[Encoder, Decoder], tmp_path: Path
) -> None:
    files = [tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"]
    for module, file in zip(codec, files):
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, file)
    out = tmp_path / "start-sd15.safetensors"
    said = ["--data", str(DATA), "--vae", str(files[0]), "--decoder", str(files[1])]
    few = ["--pairs", "2", "--batch", "2", "--precision", "fp32"]
    assert main(["halfway", *said, "--out", str(out), *few, "--steps", "0", "0"]) == 0
    cut_out = lib_latent_upscale.load(out).network.to_state_dict()
    reader = ShardReader(DATA)
    two = [RAW.to(reader.space.unet, reader.pair(index)[0][None]) for index in range(2)]
    expected = halfway.joined(*codec, two).to_state_dict()
    for key in ("coarse.0.conv1.weight", "fine.2.conv3.bias", "fold.weight", "conv_last.weight"):
        assert torch.allclose(cut_out[key], expected[key], atol=1e-5)
    # On from there, a step of each half.
    began = ["--begin", str(out), "--out", str(out), "--steps", "1", "1"]
    assert main(["halfway", *said, *few, *began]) == 0
    learnt = lib_latent_upscale.load(out).network.to_state_dict()
    for key in ("coarse.0.conv1.weight", "folding.0.conv1.weight", "fold.weight"):
        assert not torch.equal(learnt[key], cut_out[key])
    upscaler = lib_latent_upscale.load(out)
    assert upscaler.network.architecture == "halfway"
    assert upscaler(latents(1)[0], (24, 24)).shape == (1, 4, 24, 24)
    # On from weights that resample linearly: what they compute, and more to learn by.
    torch.manual_seed(0)
    old = Halfway(4, dim=8, coarse=1, fine=1, folding=1)
    about = {"architecture": "halfway", "space": "sd15", "input": "unet"}
    linear = tmp_path / "linear.safetensors"
    save_file(old.state_dict(), linear, about)
    began = ["--begin", str(linear), "--out", str(out), "--steps", "0", "0"]
    assert main(["halfway", *said, *few, *began]) == 0
    able = lib_latent_upscale.load(out).network
    assert isinstance(able, Halfway) and able.neighbours and not old.neighbours
    with torch.no_grad():
        for size in ((24, 24), (18, 20)):
            assert torch.allclose(able(latents(1)[0], size), old(latents(1)[0], size), atol=1e-6)
    # No network of that architecture, and without a decoder there is nothing to begin from.
    other = str(Path(lib_latent_upscale.__file__).parent.parent / "models" / OTHER)
    assert main(["halfway", *said, *few, "--begin", other, "--out", str(out)]) == 2
    assert main(["halfway", *said[:4], "--decoder", str(files[0]), "--out", str(out)]) == 2
