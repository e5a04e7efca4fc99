"""Weighted sums of losses: start steps, decoded pictures, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_latent_upscale.spaces import RAW, SD15, SDXL
from lib_latent_upscale.training.codecs import Decoder
from lib_latent_upscale.training.criterion import (
    Criterion,
    Term,
    beside_each_other,
    same_squares,
)
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.latent_classifier import LatentClassifier
from lib_latent_upscale.training.losses.pointwise import PSNR
from lib_latent_upscale.training.vae import TinyVae

pytestmark = pytest.mark.usefixtures("one_thread")


class CountingVae(TinyVae):
    """A small random decoder that counts what it decodes."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        decoder = Decoder(4, width=8).eval().requires_grad_(False)
        super().__init__(SD15, "random", None, decoder)
        self.decoded: list[int] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(len(latents))
        return super().decode(latents)


def latents(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(batch, 4, 8, 8, generator=generator) * 3
    predicted = target + torch.randn(batch, 4, 8, 8, generator=generator)
    return predicted.requires_grad_(), target


def test_terms_are_weighted_and_start_when_they_shall() -> None:
    predicted, target = latents()
    criterion = Criterion([Term("l1", 0.08), Term("mse", 2.0, start=5), Term("l1", 0.5, start=7)])
    l1 = (predicted - target).abs().mean().item()
    mse = (predicted - target).square().mean().item()
    for step, expected, names in (
        (0, 0.08 * l1, ["l1"]),
        (4, 0.08 * l1, ["l1"]),
        (5, 0.08 * l1 + 2 * mse, ["l1", "mse"]),
        (7, 0.58 * l1 + 2 * mse, ["l1", "mse", "l1_2"]),
    ):
        total, parts = criterion(predicted, target, step)
        assert total.item() == pytest.approx(expected)
        assert list(parts) == names
        assert parts["l1"].item() == pytest.approx(l1)
        assert not any(value.requires_grad for value in parts.values())
        assert criterion.counts("mse", step) == ("mse" in names)
    (gradient,) = torch.autograd.grad(criterion(predicted, target, 0)[0], predicted)
    assert torch.allclose(gradient, 0.08 * (predicted - target).sign() / predicted.numel())


def test_pictures_are_decoded_once_and_only_when_they_are_compared() -> None:
    predicted, target = latents()
    vae = CountingVae()
    terms = [
        Term("l1", 0.1),
        Term("hfen", 0.1, 2, "picture"),
        Term("l1", 1.0, 2, "picture"),
    ]
    criterion = Criterion(terms, vae=vae)
    criterion(predicted, target, 1)
    assert vae.decoded == []
    total, parts = criterion(predicted, target, 2)
    assert vae.decoded == [3, 3]
    pictures, wanted = vae.decode(predicted), vae.decode(target)
    l1 = (pictures - wanted).abs().mean()
    assert parts["picture_l1"].item() == pytest.approx(l1.item(), rel=1e-5)
    expected = 0.1 * parts["l1"] + 0.1 * parts["picture_hfen"] + l1
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("decode_batch", [None, 1, 2])
def test_the_gradient_goes_through_the_frozen_vae(decode_batch: int | None) -> None:
    predicted, target = latents()
    vae = CountingVae()
    assert vae.decoder is not None
    terms = [Term("mse", on="picture")]
    criterion = Criterion(terms, vae=vae, decode_batch=decode_batch)
    criterion(predicted, target, 0)[0].backward()
    again = predicted.detach().clone().requires_grad_()
    (vae.decode(again) - vae.decode(target)).square().mean().backward()
    assert predicted.grad is not None
    assert again.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert torch.allclose(predicted.grad, again.grad, rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in vae.decoder.parameters())
    if decode_batch:
        assert max(vae.decoded[:-2]) == decode_batch


@pytest.mark.parametrize("side", [3, 8, 20])
def test_pictures_may_be_of_a_square_of_each_latent(side: int) -> None:
    """Each latent's own, the same in both, another one in the next step; no more than there is."""
    predicted, target = latents(batch=2)
    vae = CountingVae()
    criterion = Criterion([Term("l1", on="picture")], vae=vae, picture_side=side)
    inside = min(side, 8)
    places, touched = set(), []
    for seed in range(8):
        torch.manual_seed(seed)
        loss, _ = criterion(predicted, target, 0)
        (gradient,) = torch.autograd.grad(loss, predicted)
        for row, latent in enumerate(gradient):
            where = latent.abs().sum(0).nonzero()
            top, left = where.min(0).values.tolist()
            assert (where.max(0).values - where.min(0).values + 1).tolist() == [inside, inside]
            places.add((top, left))
            cut = (
                slice(row, row + 1),
                slice(None),
                slice(top, top + side),
                slice(left, left + side),
            )
            touched.append((vae.decode(predicted[cut]) - vae.decode(target[cut])).abs().mean())
        expected = torch.stack(touched[-2:]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (len(places) > 1) == (side < 8)
    with pytest.raises(TrainingError, match="picture_side"):
        Criterion([Term("l1")], picture_side=0)


def test_several_squares_of_a_latent_are_one_picture() -> None:
    """A PSNR is then of all of them together, not the mean of those of each."""
    predicted, target = latents(batch=2)
    vae = CountingVae()
    terms = [Term("psnr", on="picture")]
    criterion = Criterion(terms, vae=vae, picture_side=3, picture_squares=2)
    torch.manual_seed(5)
    loss, _ = criterion(predicted, target, 0)
    torch.manual_seed(5)
    found, wanted = same_squares(predicted, target, 3, 2)
    errors = (vae.decode(found) - vae.decode(wanted)).square().flatten(1).mean(1).view(2, 2)
    together, each = (
        (some / PSNR().floor).log1p().mean().item() for some in (errors.mean(1), errors)
    )
    assert loss.item() == pytest.approx(together, rel=1e-5)
    assert loss.item() != pytest.approx(each, rel=1e-3)
    with pytest.raises(TrainingError, match="picture_squares"):
        Criterion(terms, vae=vae, picture_side=3, picture_squares=0)


def test_squares_come_latent_by_latent() -> None:
    latents = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 9, 7)
    squares, _ = same_squares(latents, latents, 4, 2)
    assert squares.shape == (6, 1, 4, 4)
    assert squares[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    joined = beside_each_other(torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3), 3)
    assert joined[:, 0, 1].tolist() == [[0] * 3 + [1] * 3, [2] * 3 + [3] * 3, [4] * 3 + [5] * 3]


def test_squares_look_at_borders_as_much_as_at_the_middle() -> None:
    """A corner's pixel is in a fair share of the squares, where with all places as likely it would
    be in one of 27 * 27."""
    torch.manual_seed(0)
    places = torch.arange(40.0 * 40).view(1, 1, 40, 40).expand(2_000, 1, 40, 40)
    squares, others = same_squares(places, places, 14)
    assert torch.equal(squares, others)
    shares = torch.bincount(squares.flatten().long(), minlength=1_600).view(40, 40) / 2_000
    rows = shares.mean(1)
    assert rows[[0, -1]].min() > 0.5 * rows[20]
    assert rows.max() < 1.6 * rows[20]
    corners = torch.stack([shares[0, 0], shares[0, -1], shares[-1, 0], shares[-1, -1]])
    assert corners.min() > 0.15 * shares[20, 20]


def test_the_vae_gets_raw_latents() -> None:
    """Whatever scale the network works in, the picture is the same."""
    predicted, target = latents()
    vae = CountingVae()
    terms = [Term("l1", on="picture")]
    raw, _ = Criterion(terms, vae=vae)(predicted, target, 0)
    scaled = [RAW.to(SD15.unet, latent) for latent in (predicted, target)]
    criterion = Criterion(terms, vae=vae, to_raw=lambda latent: SD15.unet.to(RAW, latent))
    unet, _ = criterion(*scaled, 0)
    assert unet.item() == pytest.approx(raw.item(), rel=1e-5)


def test_under_autocast_the_sum_is_float32() -> None:
    predicted, target = latents()
    criterion = Criterion([Term("fft"), Term("l1", on="picture")], vae=CountingVae())
    expected, _ = criterion(predicted.bfloat16().float(), target, 0)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = criterion(predicted.bfloat16(), target, 0)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_contextual_terms_compare_raw_latents() -> None:
    torch.manual_seed(1)
    model = LatentClassifier(SD15, ["a", "b"], 8)
    predicted, target = latents()
    term = Term("contextual", options={"features": model})
    raw, _ = Criterion([term], space=SD15)(predicted, target, 0)
    scaled = [RAW.to(SD15.unet, latent) for latent in (predicted, target)]
    criterion = Criterion([term], to_raw=lambda latent: SD15.unet.to(RAW, latent))
    assert criterion(*scaled, 0)[0].item() == pytest.approx(raw.item(), rel=1e-3)
    with pytest.raises(TrainingError, match=r"is of SD1\.5 latents, and these are SDXL's"):
        Criterion([term], space=SDXL)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": "l3"}, "there are l1"),
        ({"loss": "l1", "weight": 0.0}, "above 0"),
        ({"loss": "l1", "weight": float("nan")}, "above 0"),
        ({"loss": "l1", "start": -1}, "0 or more"),
        ({"loss": "l1", "on": "sound"}, "latent or picture"),
        ({"loss": "lpips"}, "lpips compares pictures, not latents"),
        ({"loss": "contextual", "on": "picture"}, "contextual compares latents"),
        ({"loss": "adversarial", "on": "picture"}, "adversarial compares latents"),
    ],
)
def test_senseless_terms_are_refused(term: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Term(**term)


def test_what_a_criterion_lacks_is_told_before_the_first_step() -> None:
    with pytest.raises(TrainingError, match="the VAE's decoder"):
        Criterion([Term("l1", on="picture")])
    with pytest.raises(TrainingError, match="needs a discriminator"):
        Criterion([Term("l1"), Term("adversarial")])
    with pytest.raises(TrainingError, match="classifier"):
        Criterion([Term("contextual", options={"features": "away.safetensors"})])
    for terms in ([], [Term("l1", start=1)]):
        with pytest.raises(TrainingError, match="no loss counts at step 0"):
            Criterion(terms)
    with pytest.raises(TrainingError, match="decode_batch"):
        Criterion([Term("l1")], decode_batch=0)
