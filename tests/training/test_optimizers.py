"""Optimizers by name, the course of the learning rate, the average of the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lib_latent_upscale.training.ema import Ema
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.muon import is_inner, orthogonal
from lib_latent_upscale.training.optimizers import RateSchedule, build, set_rate

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["adamw", "adam", "sgd", "muon", "prodigy", "lamb", "lion", "adan", "adabelief"]
OF_TORCH = ("adamw", "adam", "sgd", "muon")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 4))


def advance(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> float:
    loss = torch.zeros(())
    for step in range(first, last):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (net(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_resumes_exactly(name: str) -> None:
    if name not in OF_TORCH:
        pytest.importorskip("pytorch_optimizer")
    rate = {"prodigy": 1.0, "sgd": 0.3, "lion": 3e-3}.get(name, 3e-2)
    net = network()
    optimizer = build(name, net.parameters(), rate, {})
    before = advance(net, optimizer, 0, 1)
    advance(net, optimizer, 1, 40)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    after = advance(net, optimizer, 40, 80)
    assert after < 0.8 * before

    again = network()
    other = build(name, again.parameters(), rate, {})
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    advance(again, other, 40, 80)
    for one, another in zip(net.parameters(), again.parameters()):
        assert torch.equal(one, another)


def test_what_is_no_optimizer() -> None:
    pytest.importorskip("pytorch_optimizer")
    parameters = list(network().parameters())
    with pytest.raises(TrainingError, match=r"near it are.*adamw"):
        build("adamv", parameters, 1e-3, {})
    with pytest.raises(TrainingError, match=r"lr=0\.001"):
        build("adamw", parameters, 1e-3, {"momentun": 0.9})
    chosen = build("AdamW", parameters, 1e-3, {"betas": [0.9, 0.99]})
    assert chosen.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("steps", [10, 200])
def test_one_cycle_is_torchs(steps: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps)
    ours = RateSchedule("one-cycle", steps)
    for step in range(steps):
        assert ours.factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_cosine_and_constant() -> None:
    cosine = RateSchedule("cosine", 1100, warm_up=100)
    assert cosine.factor(0) == pytest.approx(0.01)
    assert cosine.factor(99) == cosine.factor(100) == 1
    assert cosine.factor(600) == pytest.approx(0.5)
    assert cosine.factor(1100) == cosine.factor(5000) == pytest.approx(0)
    constant = RateSchedule("constant", 10, warm_up=4)
    assert [constant.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    with pytest.raises(TrainingError, match="cosine"):
        RateSchedule("linear", 10)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(network().parameters(), 1.0)
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_average() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    ema = Ema(net, 0.5)
    expected = net[0].weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net[0].weight.fill_(step)
            net[1].running_mean.fill_(step)  # type: ignore[union-attr]
            net[1].num_batches_tracked.fill_(step)  # type: ignore[union-attr, operator]
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
        ema.update(net, step)
    assert torch.allclose(ema.network[0].weight, expected)  # type: ignore[index]
    assert int(ema.network[1].num_batches_tracked) == 4  # type: ignore[index]
    assert 0 < float(ema.network[1].running_mean) < 4  # type: ignore[index]
    plain = Ema(net, 0.0)
    with torch.no_grad():
        net[0].weight.fill_(7)
    plain.update(net, 100)
    assert float(plain.network[0].weight.detach()) == 7  # type: ignore[index]
    with pytest.raises(ValueError, match="decay"):
        Ema(net, 1.0)
    with pytest.raises(ValueError, match="share"):
        Ema(net, 0.5, 0.0)


def test_the_average_may_be_of_all_steps_alike() -> None:
    """What it began from is one of them, until the memory of 1 / (1 - decay) is full."""
    net = nn.Linear(1, 1, bias=False)
    begun = 10.0
    with torch.no_grad():
        net.weight.fill_(begun)
    ema = Ema(net, 0.9, share=1)
    seen = [begun]
    for step in range(12):
        with torch.no_grad():
            net.weight.fill_(step)
        ema.update(net, step)
        seen.append(step)
        average = float(ema.network.weight.detach())  # type: ignore[arg-type]
        if step < 9:
            assert average == pytest.approx(sum(seen) / len(seen))
            last = average
        else:
            last = 0.9 * last + 0.1 * step
            assert average == pytest.approx(last)


@pytest.mark.parametrize("shape", [(64, 64), (48, 432), (256, 36)])
def test_muon_makes_updates_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    # As far as it takes it: most within 0.7 to 1.2, the smallest of a square one not quite.
    assert values.max() < 1.3
    assert values.median() > 0.65
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(
        found.flatten(), (left @ right).flatten(), dim=0
    ) > 0.95  # fmt: skip


def test_muon_leaves_the_first_and_last_layers_to_adamw() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 256, 3), nn.Conv2d(64, 4, 3)
    )
    assert [is_inner(p) for p in net.parameters() if p.ndim == 4] == [False, True, True, False]
    before = copy.deepcopy(net.state_dict())
    optimizer = build("muon", net.parameters(), 1e-2, {"weight_decay": 0.0})
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for key, value in net.state_dict().items():
        # Both parts move by about the learning rate: AdamW's first step is the rate itself.
        size = (value - before[key]).square().mean().sqrt()
        assert 1e-3 < size < 1.1e-2, key
    with pytest.raises(NotImplementedError):
        optimizer.step(lambda: 0.0)


@torch.no_grad()
def test_muon_can_leave_sums_over_the_inputs_alone() -> None:
    """Then a bias is all that moves an output everywhere at once, and may go slower."""
    sums, rates = {}, {}
    for centered, rest in ((False, 1.0), (True, 0.1)):
        torch.manual_seed(0)
        layer = nn.Conv2d(64, 64, 3)
        before = copy.deepcopy(layer)
        how = {"weight_decay": 0.0, "centered": centered, "rest": rest}
        optimizer = build("muon", layer.parameters(), 1e-2, how)
        layer.weight.grad = torch.randn_like(layer.weight) + 0.3  # as behind a ReLU
        layer.bias.grad = torch.randn_like(layer.bias)
        optimizer.step()
        moved = (layer.weight - before.weight).flatten(1)
        sums[centered] = float(moved.sum(dim=1).abs().max())
        rates[centered] = float((layer.bias - before.bias).abs().max())
        assert moved.square().mean().sqrt() > 1e-3
    assert sums[True] < 0.01 < 0.1 < sums[False]  # Newton and Schulz go on in bfloat16
    assert rates[True] == pytest.approx(0.1 * rates[False], rel=1e-3)
    with pytest.raises(TrainingError, match="rest -1"):
        build("muon", layer.parameters(), 1e-2, {"rest": -1})
