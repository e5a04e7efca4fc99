"""Idle channels begin anew: the network computes the same, and can learn by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_latent_upscale.architectures.halfway import Halfway
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.idle import IdleChannels
from lib_latent_upscale.training.revive import revive
from lib_latent_upscale.training.shards import ShardReader
from lib_latent_upscale.training.trained import read
from lib_latent_upscale.weights import writing

DATA = Path(__file__).parent.parent / "data" / "clipart-trained-sd15.safetensors"
ABOUT = {"architecture": "halfway", "space": "sd15", "input": "unet", "figures": "{}"}
pytestmark = pytest.mark.usefixtures("one_thread")


def half_dead() -> Halfway:
    """With 3 silent channels in one layer, and all 16 of another, whose block does nothing then but
    add its last bias."""
    torch.manual_seed(0)
    network = Halfway(channels=4, dim=16, coarse=2, fine=1, folding=1).eval()
    with torch.no_grad():
        network.coarse[0].conv1.bias[:3] = -100  # type: ignore[union-attr, index]
        network.fine[0].conv2.bias[:] = -100  # type: ignore[union-attr, index]
    return network


def latents(count: int = 4) -> list[torch.Tensor]:
    return list(ShardReader(DATA).small_latents(count))


def silent(network: Halfway) -> dict[str, int]:
    channels = IdleChannels()
    with torch.no_grad(), channels.watched(network):
        for latent in latents():
            network(latent)
    counts = {
        name: int(channels.silent(layer).sum())
        for name, layer in network.named_modules()
        if name.endswith((".conv1", ".conv2"))
    }
    return {name: count for name, count in counts.items() if count}


def test_idle_channels_begin_anew_and_nothing_changes() -> None:
    network = half_dead()
    before = silent(network)
    assert before["coarse.0.conv1"] >= 3 and before["fine.0.conv2"] == 16
    with torch.no_grad():
        expected = [network(latent) for latent in latents()]
    assert revive(network, latents()) == sum(before.values())
    assert not silent(network)
    with torch.no_grad():
        for latent, wanted in zip(latents(), expected):
            assert torch.allclose(network(latent), wanted, atol=1e-5)
    network.train()(latents(1)[0]).square().mean().backward()
    gradient = network.fine[0].conv3.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor) and gradient.abs().amax(dim=(0, 2, 3)).min() > 0
    assert revive(network, latents()) == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = tmp_path / "given.safetensors", tmp_path / "out.safetensors"
    network = half_dead()
    writing.write(given, network.to_state_dict(), {**ABOUT, "data": "mine"})
    said = ["revive", str(given), "--data", str(DATA), "--out", str(out), "--pairs", "4"]
    assert main(said) == 0
    assert f"{sum(silent(network).values())} idle channels" in capsys.readouterr().out
    revived = read(out)
    assert revived.metadata["data"] == "mine" and "figures" not in revived.metadata
    changed = {
        key for key, value in revived.tensors.items() if not value.equal(read(given).tensors[key])
    }
    assert {"coarse.0.conv1.weight", "fine.0.conv2.bias", "fine.0.conv3.weight"} <= changed
    assert not any(key.startswith(("conv_", "fold.", "unfold.", "phase.")) for key in changed)


@pytest.mark.parametrize("about", [{"space": "sdxl"}, {"input": "raw"}])
def test_what_is_no_halfway_for_these_latents_is_refused(
    tmp_path: Path, about: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "given.safetensors", tmp_path / "out.safetensors"
    writing.write(given, half_dead().to_state_dict(), {**ABOUT, **about})
    said = ["revive", str(given), "--data", str(DATA), "--out", str(out)]
    assert main(said) == 2
    assert "no halfway network for SD1.5 latents" in capsys.readouterr().err
    assert main([*said[:-1], str(out.with_suffix(".pt"))]) == 2
    assert main([*said, "--pairs", "0"]) == 2
    assert not out.exists()
