"""The networks as they are trained: right gradients, the published first weights, variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_latent_upscale import architectures
from lib_latent_upscale.training import networks
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.networks import NetworkSpec, build

from .. import published
from .tiny import NETWORKS, shrunk

OWN = sorted(networks.OWN)
FOREIGN = sorted(set(NETWORKS) - set(OWN))
VARIANTS = {
    "dat, fourier ends": NetworkSpec("dat", fourier_ends=True),
    "dat, mbconv": NetworkSpec("dat", mbconv=True),
    "compact, mbconv": NetworkSpec("compact", mbconv=True),
    "drct, spectral": NetworkSpec("drct", {"spectral": True}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(spec: NetworkSpec) -> nn.Module:
    if spec.architecture in FOREIGN:
        pytest.importorskip("spandrel")
    torch.manual_seed(0)
    return build(shrunk(spec), 4, 2)


def latents(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(1))


def unsettled(network: nn.Module) -> nn.Module:
    """Weights that no gradient vanishes at, in float64."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return network.double()


def a_size(network: nn.Module) -> tuple[int, int]:
    """What it makes of latents of 8x8; of one that takes any size, what all its weights are for."""
    return (16, 16) if network.scale is not None else (12, 12)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", [*OWN, *VARIANTS])
def test_gradients_are_those_of_finite_differences(name: str, mode: str) -> None:
    """Along a random direction of all weights and the input at once."""
    network = unsettled(tiny(VARIANTS.get(name) or NetworkSpec(name)))
    network.train(mode == "train")
    for module in network.modules():  # else a step along the direction moves their averages, too
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = latents().double().requires_grad_()
    weights = [x, *network.parameters()]
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in weights]
    size = a_size(network)
    target = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        return (network(x, size) * target).sum()

    gradients = torch.autograd.grad(loss(), weights)
    slope = sum(float((one * other).sum()) for one, other in zip(gradients, direction))
    step, values = 1e-8, []  # small: networks with ReLU have kinks
    with torch.no_grad():
        for sign in (1, -2):
            for weight, way in zip(weights, direction):
                weight += sign * step * way
            # As in training: nothing that was kept for weights that have changed may be used.
            values.append(float(loss()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_every_weight_gets_a_gradient(name: str) -> None:
    network = unsettled(tiny(NetworkSpec(name))).float()
    network(latents(), a_size(network)).square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key


@pytest.mark.parametrize("name", ["dat", "craft"])
def test_a_dead_channel_has_a_gradient_of_numbers(name: str) -> None:
    """Attention between channels divides by their lengths, which have no slope at zero."""
    network = tiny(NetworkSpec(name))
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if "qkv" in key or key.endswith(("q.weight", "kv.weight")):
                weight.zero_()
    network(latents(), a_size(network)).square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is None or torch.isfinite(weight.grad).all(), key


@pytest.mark.parametrize("name", OWN)
def test_bfloat16_gradients_are_near(name: str) -> None:
    network = unsettled(tiny(NetworkSpec(name))).float()
    found = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = network(latents(), a_size(network))
        (result.float() - 1).square().mean().backward()
        found.append(torch.cat([one.grad.flatten() for one in network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.98


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_spandrel(name: str) -> None:
    network = tiny(NetworkSpec(name))
    x = latents(side=16).requires_grad_()
    result = network(x, (32, 32))
    assert result.shape == (2, 4, 32, 32)
    result.square().sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", OWN)
def test_published_sizes(name: str) -> None:
    """The default parameters are the published ones: as many weights, under the same names."""
    published_as = {
        "dat": "DAT6x6", "craft": "CRAFT7x6", "swinfir": "SwinFIR4x6", "drct": "DRCT12x6",
        "city96": "city96_x2.0", "ttl": "ttl",
    }.get(name)  # fmt: skip
    with torch.device("meta"):
        network = build(NetworkSpec(name), 4, 2)
    if published_as is None:
        ours = {"compact": 890_948, "halfway": 1_507_012}
        assert sum(one.numel() for one in network.parameters()) == ours[name]
        return
    shapes = {key: tuple(one.shape) for key, one in network.to_state_dict().items()}  # type: ignore[operator]
    wanted = published.state_dict(published_as)
    assert shapes == {key: tuple(wanted[key].shape) for key in published.weight_keys(published_as)}


def test_first_weights() -> None:
    torch.manual_seed(0)
    network = build(NetworkSpec("swinfir", {"depths": (1,)}), 4, 2)
    block = network.layers[0].residual_group["blocks"][0]  # type: ignore[index, union-attr]
    for weight in (block.mlp.fc1.weight, block.attn.relative_position_bias_table):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(block.mlp.fc1.bias.detach().abs().max()) == 0
    convolution = network.conv_first
    assert isinstance(convolution, nn.Conv2d)  # Kaiming uniform: within 1 / sqrt(fan in)
    assert float(convolution.weight.detach().abs().max()) == pytest.approx(1 / 6, rel=0.05)

    x = latents()
    compact = build(NetworkSpec("compact"), 4, 2)
    bilinear = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.equal(compact(x), bilinear)


@pytest.mark.parametrize("name", ["dat", "compact", "craft", "ttl", "halfway"])
def test_dropout_before_the_last_convolution_in_training_only(name: str) -> None:
    plain = unsettled(tiny(NetworkSpec(name))).float()
    dropping = tiny(NetworkSpec(name, dropout=0.5))
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    dropping.load_state_dict(plain.state_dict())
    x = latents()
    with torch.no_grad():
        assert torch.equal(plain.eval()(x, (16, 16)), dropping.eval()(x, (16, 16)))
        torch.manual_seed(0)
        one, other = dropping.train()(x, (16, 16)), dropping(x, (16, 16))
    assert not torch.equal(one, other)


def test_dropout_is_of_whole_channels() -> None:
    network = tiny(NetworkSpec("halfway", dropout=0.5))
    given: list[Tensor] = []
    network.conv_last.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    network(latents(), (16, 16))
    dropped = given[0].flatten(1, 2).abs().amax(dim=1) == 0  # (N, dim), of tokens
    assert dropped.any() and not dropped.all()


@pytest.mark.parametrize("name", ["halfway", "city96"])
def test_soft_relus_compute_the_same_and_learn_below_zero(name: str) -> None:
    plain, soft = (tiny(NetworkSpec(name, soft_relu=slope)) for slope in (0.0, 0.1))
    soft.load_state_dict(plain.state_dict())
    x = latents()
    assert torch.equal(plain(x, (16, 16)), soft(x, (16, 16)))
    gradients = []
    for network in (plain, soft):
        inner = [m for m in network.modules() if isinstance(m, nn.Conv2d)][1]
        with torch.no_grad():
            inner.bias.fill_(-100)  # never above zero
        network(x, (16, 16)).square().sum().backward()
        gradients.append(float(inner.weight.grad.abs().sum()))
    assert gradients[0] == 0 < gradients[1]
    with pytest.raises(TrainingError, match="has no ReLU"):
        tiny(NetworkSpec("dat", soft_relu=0.1))


def test_variants_change_what_they_say() -> None:
    dat = tiny(NetworkSpec("dat", mbconv=True))
    convolutions = [m for m in dat.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    three = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert {m.in_channels == m.out_channels for m in three} == {False}
    ffc = tiny(NetworkSpec("dat", fourier_ends=True))
    assert type(ffc.conv_last).__name__ == "FastFourierConvolution"
    # Its global half sees the whole picture: one pixel changes all others.
    x = latents(1)
    with torch.no_grad():
        features = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(2))
        before = ffc.conv_last(features)
        features[0, :, 0, 0] += 10
        after = ffc.conv_last(features)
    assert float((before - after).abs()[0, :, 8:, 8:].max()) > 0
    assert ffc.eval()(x, (16, 16)).shape == (1, 4, 16, 16)
    with pytest.raises(TrainingError, match="conv_first"):
        tiny(NetworkSpec("ttl", fourier_ends=True))


@pytest.mark.parametrize("name", OWN)
def test_trained_weights_are_loaded_by_the_library(name: str) -> None:
    network = unsettled(tiny(NetworkSpec(name))).float().eval()
    factor = {"scale": 2} if name == "city96" else {}
    sides = {"split_size": (2, 4)} if name in ("dat", "craft") else {}
    loaded = architectures.from_state_dict(network.to_state_dict(), **factor, **sides)  # type: ignore[operator]
    x = latents()
    with torch.no_grad():
        assert torch.equal(loaded(x, size=(16, 16)), network(x, (16, 16)))


def test_weights_to_begin_from(tmp_path: Path) -> None:
    trained = unsettled(tiny(NetworkSpec("compact"))).float()
    file = tmp_path / "weights.pt"
    torch.save(trained.state_dict(), file)
    begun = tiny(NetworkSpec("compact", weights=str(file)))
    assert all(torch.equal(one, begun.state_dict()[k]) for k, one in trained.state_dict().items())
    with pytest.raises(TrainingError, match="does not fit"):
        tiny(NetworkSpec("city96", weights=str(file)))
    with pytest.raises(TrainingError, match="no such file"):
        tiny(NetworkSpec("compact", weights=str(tmp_path / "none.pt")))


def test_weights_of_an_earlier_form_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "linear.pt"
    spec = NetworkSpec("halfway", {"neighbours": 0})
    torch.save(tiny(spec).float().state_dict(), file)
    with pytest.raises(TrainingError, match=r"--set network\.neighbours=0"):
        tiny(NetworkSpec("halfway", weights=str(file)))
    tiny(replace(spec, weights=str(file)))


def test_what_cannot_be_built() -> None:
    with pytest.raises(TrainingError, match="depth"):
        build(NetworkSpec("compact", {"dpeth": 3}), 4, 2)
    with pytest.raises(TrainingError, match="city96 takes"):
        build(NetworkSpec("compact"), 4, 1.5)
    with pytest.raises(TrainingError, match="no network 'nosuch'"):
        build(NetworkSpec("nosuch"), 4, 2)
    with pytest.raises(TrainingError, match="cannot be built"):
        build(NetworkSpec("ttl", {"dim": 20}), 4, 2)
    assert build(NetworkSpec("city96", {"dim": 8, "depth": 1}), 4, 1.25)(latents()).shape[-1] == 10
