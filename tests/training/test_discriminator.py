"""The discriminator, its losses beside their formulas, its steps and its resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib_latent_upscale.training.criterion import Criterion, Term
from lib_latent_upscale.training.discriminator import KINDS, Adversary, build
from lib_latent_upscale.training.errors import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")


def small_network(seed: int = 1) -> nn.Module:
    """A discriminator without batch statistics, so that its scores can be asked for again."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(4, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    return nn.Sequential(*layers).double()


def adversary(kind: str = "vanilla", network: nn.Module | None = None, **options) -> Adversary:
    network = network or small_network()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    return Adversary(network, optimizer, kind=kind, **options)


def latents(seed: int = 2, batch: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fake, real = torch.randn(2, batch, 4, 8, 8, generator=generator, dtype=torch.float64)
    return fake, real + 1


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


def expected(kind: str, fake: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """The generator's and the discriminator's loss by the papers' formulas."""
    if kind == "vanilla":
        generator = -log_sigmoid(fake).mean()
        discriminator = -(log_sigmoid(real).mean() + log_sigmoid(-fake).mean()) / 2
    elif kind == "least_squares":
        generator = ((fake - 1) ** 2).mean() / 2
        discriminator = (((real - 1) ** 2).mean() + (fake**2).mean()) / 2
    elif kind == "hinge":
        generator = -fake.mean()
        discriminator = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
        discriminator /= 2
    else:
        real_over, fake_over = real - fake.mean(), fake - real.mean()
        generator = -(log_sigmoid(-real_over).mean() + log_sigmoid(fake_over).mean()) / 2
        discriminator = -(log_sigmoid(real_over).mean() + log_sigmoid(-fake_over).mean()) / 2
    return generator, discriminator


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_papers(kind: str) -> None:
    fake, real = latents()
    one = adversary(kind)
    scores = [one.network(latent).detach().numpy()[:, 0] for latent in (fake, real)]
    generator, discriminator = expected(kind, *scores)
    assert one.generator_loss(fake, real).item() == pytest.approx(generator)
    assert one.discriminator_loss(fake, real).item() == pytest.approx(discriminator)


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_teaches_its_own_side(kind: str) -> None:
    fake, real = latents()
    one = adversary(kind)
    fake.requires_grad_()
    one.generator_loss(fake, real).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in one.network.parameters())
    fake.grad = None
    one.discriminator_loss(fake, real).backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in one.network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    fake, real = latents(batch=2)
    one = adversary(kind)
    fake = fake[..., :4, :4].clone().requires_grad_()
    loss = lambda latent: one.generator_loss(latent, real[..., :4, :4])  # noqa: E731
    assert torch.autograd.gradcheck(loss, (fake,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_learns_to_tell(kind: str) -> None:
    one = adversary(kind)
    first = one.discriminator_loss(*latents()).item()
    for seed in range(30):
        one.update(*latents(seed))
    assert one.discriminator_loss(*latents(99)).item() < first - 0.1
    fake, real = (one.network(latent).mean() for latent in latents(99))
    assert real > fake


def test_parts_of_a_batch_add_up() -> None:
    fake, real = latents(batch=6)
    whole, parts = adversary(), adversary()
    whole.update(fake, real)
    for start in (0, 3):
        parts.backward(fake[start : start + 3], real[start : start + 3], 0.5)
    parts.step()
    for one, other in zip(whole.network.parameters(), parts.network.parameters()):
        assert torch.allclose(one, other, atol=1e-10)


def test_gradients_are_averaged_before_the_step() -> None:
    seen = []

    def average(network: nn.Module) -> None:
        seen.append(all(parameter.grad is not None for parameter in network.parameters()))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    network = small_network()
    before = [parameter.clone() for parameter in network.parameters()]
    Adversary(network, torch.optim.SGD(network.parameters(), 1.0), average=average).update(
        *latents()
    )
    assert seen == [True]
    assert all(torch.equal(one, two) for one, two in zip(before, network.parameters()))


def test_resuming_is_exact(tmp_path: Path) -> None:
    whole = adversary()
    for seed in range(6):
        whole.update(*latents(seed))
    first = adversary()
    for seed in range(3):
        first.update(*latents(seed))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = adversary(network=small_network(9))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(3, 6):
        second.update(*latents(seed))
    for one, other in zip(whole.network.parameters(), second.network.parameters()):
        assert torch.equal(one, other)


def test_patches_are_judged_each_by_itself() -> None:
    torch.manual_seed(0)
    network = build(4, "patches").double().eval()
    latent = torch.randn(1, 4, 40, 40, dtype=torch.float64)
    scores = network(latent)
    assert scores.shape == (1, 1, 20, 20)
    changed = latent.clone()
    changed[..., 20, 20] += 1
    rows = (network(changed) != scores)[0, 0].any(dim=1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (6, 13)  # of 2 pixels each: 16 in all


def test_patches_learn_and_go_on_exactly() -> None:
    def patches(seed: int) -> Adversary:
        torch.manual_seed(seed)
        return adversary(network=build(4, "patches").double())

    whole = patches(1)
    losses = [whole.update(*latents(seed)).item() for seed in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    first, second = patches(1), patches(2)
    for seed in range(4):
        first.update(*latents(seed))
    second.load_state_dict(first.state_dict())
    for seed in range(4, 8):
        second.update(*latents(seed))
    for one, other in zip(whole.network.parameters(), second.network.parameters()):
        assert torch.equal(one, other)


def test_as_a_term_of_a_criterion() -> None:
    fake, real = latents()
    one = adversary()
    criterion = Criterion([Term("l1", 0.08), Term("adversarial", 0.5, 2)], discriminator=one)
    total, parts = criterion(fake.requires_grad_(), real, 2)
    generator = one.generator_loss(fake).item()
    assert parts["adversarial"].item() == pytest.approx(generator)
    assert total.item() == pytest.approx(0.08 * parts["l1"].item() + 0.5 * generator)
    assert not list(criterion.parameters())  # nothing that a trainer could train by mistake


def test_the_published_discriminator() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(4)
    network = build(4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_860_273
    assert next(network.parameters()).shape[1] == 4
    one = adversary(network=network, precision=torch.bfloat16)
    fake, real = (latent.float() for latent in latents())
    fake = fake.requires_grad_()
    loss = one.generator_loss(fake)
    loss.backward()
    assert loss.dtype == torch.float32
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    before = [parameter.clone() for parameter in network.parameters()]
    assert one.update(fake, real).isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_too_small_batches_for_the_published_discriminator_are_refused() -> None:
    """Over two values, batch normalisation made gradients of 1e10."""
    pytest.importorskip("timm")
    torch.manual_seed(4)
    one = adversary(network=build(4))
    for shape in ((1, 32, 32), (2, 24, 24), (3, 8, 32)):
        latent = torch.randn(shape[0], 4, *shape[1:])
        for ask in (one.generator_loss, one.discriminator_loss):
            with pytest.raises(TrainingError, match="a batch of 4 or more, or a crop"):
                ask(latent, latent)
    for shape in ((4, 24, 24), (1, 40, 40)):
        latent = torch.randn(shape[0], 4, *shape[1:], requires_grad=True)
        one.generator_loss(latent, latent).backward()
        assert latent.grad is not None
        assert 0 < latent.grad.norm() < 1e5


def test_what_cannot_be_built_is_told() -> None:
    pytest.importorskip("timm")
    with pytest.raises(TrainingError, match="no discriminator 'efficientnetv9'"):
        build(4, "efficientnetv9")
    with pytest.raises(TrainingError, match="vanilla, least_squares"):
        adversary("wgan")
    with pytest.raises(ValueError, match="none are given"):
        adversary("relativistic").generator_loss(latents()[0])
