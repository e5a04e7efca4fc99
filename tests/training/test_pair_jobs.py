"""What is cut of a picture: whole numbers, inside, at one place, and free of border effects."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_latent_upscale.training import codecs
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.pair_jobs import Cutting, Factors, cut, jobs, parse_factors
from lib_latent_upscale.training.pictures import to_range


def cutting(**changes: object) -> Cutting:
    usual: dict[str, object] = {
        "factors": (parse_factors("2"),), "crop": 8, "crops": 3, "margin": 2, "fit": 0,
        "scales": (1.0,), "flip": False, "seed": 0,
    }  # fmt: skip
    return Cutting(**{**usual, **changes})  # type: ignore[arg-type]


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("2", "2", "2"), ("1.25", "5/4", "5/4"), ("4/3", "4/3", "4/3"), ("1..2.1", "1", "21/10")],
)
def test_factors_are_read(text: str, low: str, high: str) -> None:
    assert parse_factors(text) == Factors(Fraction(low), Fraction(high))


def test_a_range_has_the_sixteenths_in_it() -> None:
    choices = parse_factors("1..2.1").choices()
    assert choices[0] == Fraction(17, 16)
    assert choices[-1] == Fraction(33, 16)
    assert len(choices) == 17


@pytest.mark.parametrize(
    ("text", "message"),
    [("two", "not two"), ("1..2..3", "a factor is"), ("1", "above 1"), ("0.5", "above 1"),
     ("2..1.5", "above 1"), ("9", "up to 8"), ("1/0", "a factor is"), ("1.33", "take 4/3")],
)  # fmt: skip
def test_what_is_no_factor_is_refused(text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        parse_factors(text)


@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    factors=st.lists(st.sampled_from(["2", "1.25", "4/3", "3", "1..2.1"]), min_size=1, max_size=3),
    crop=st.sampled_from([0, 8, 12, 17]),
    margin=st.integers(0, 5),
    fit=st.sampled_from([0, 300]),
    scales=st.sampled_from([(1.0,), (1.0, 0.5)]),
    flip=st.booleans(),
)
def test_jobs_fit_into_their_picture(
    size: tuple[int, int],
    factors: list[str],
    crop: int,
    margin: int,
    fit: int,
    scales: tuple[float, ...],
    flip: bool,
) -> None:
    how = cutting(
        factors=tuple(map(parse_factors, factors)), crop=crop, margin=margin, fit=fit,
        scales=scales, flip=flip,
    )  # fmt: skip
    found = jobs("name", size, how)
    assert found == jobs("name", size, how)
    for job in found:
        assert not any(side % 8 for side in (*job.large, *job.small))
        for side, small in zip(job.crop, job.small):
            assert Fraction(side, small) == job.factor
        for side, small, crop_side in zip(job.large, job.small, job.crop):
            inside = side - 16 * job.margins[0], small - 16 * job.margins[1]
            assert Fraction(*inside) == job.factor
            assert side <= crop_side and (crop_side - side) % 2 == 0
        for left, top in job.places:
            assert 0 <= left <= job.size[0] - job.crop[0]
            assert 0 <= top <= job.size[1] - job.crop[1]
        assert min(job.margins) >= margin
        assert max(job.margins) <= margin + 2
        assert min(job.kept) >= (crop or 8)
        assert not fit or min(job.size) <= fit
    if flip:
        assert [job.mirrored for job in found] == [False, True] * (len(found) // 2)


def test_small_pictures_give_fewer_crops_and_then_none() -> None:
    how = cutting(crops=4)  # kept are 128 pixels, encoded 192
    counts = [len(jobs("name", (side, side), how)) for side in (512, 256, 200, 192, 191)]
    assert counts == [4, 4, 2, 2, 0]


def test_other_seeds_and_names_give_other_places() -> None:
    places = {
        jobs(name, (900, 900), cutting(seed=seed))[0].places for name in "ab" for seed in (0, 1)
    }
    assert len(places) == 4


def test_both_pictures_show_the_same() -> None:
    picture = noise(220, 210)
    (job, large, small), (mirrored, other_large, other_small) = cut(
        picture, jobs("name", picture.size, cutting(crops=1, flip=True))
    )
    left, top = job.places[0]
    crop = picture.crop((left, top, left + 192, top + 192))
    middle = np.asarray(crop)[16:-16, 16:-16]
    assert np.array_equal(large.permute(1, 2, 0).numpy(), middle)
    resized = crop.resize((96, 96), Image.Resampling.LANCZOS)
    assert np.array_equal(small.permute(1, 2, 0).numpy(), np.asarray(resized))
    assert mirrored.mirrored and mirrored.places == job.places
    assert np.array_equal(other_large.permute(1, 2, 0).numpy(), middle[:, ::-1])
    assert torch.equal(other_small, small.flip(-1))


def test_plain_places_are_passed_over() -> None:
    picture = Image.new("RGB", (1200, 1200), "grey")
    assert not cut(picture, jobs("name", picture.size, cutting(crops=2)))
    picture.paste(noise(600, 1200), (0, 0))
    work = jobs("name", picture.size, cutting(crops=20))
    made = cut(picture, work)
    assert 0 < len(made) <= len(work)
    assert all(large.float().std() > 4 for _, large, _ in made)


@pytest.mark.parametrize("margin", [19, 0])
def test_the_margin_keeps_border_effects_out(margin: int) -> None:
    """19 latent pixels is as far as TAESD's encoder sees."""
    torch.manual_seed(0)
    encoder = codecs.Encoder(4, 4).eval()
    picture = noise(8 * 100, 8 * 100)
    job = next(
        job for seed in range(9) for job in jobs(
            "name", picture.size, cutting(margin=margin, crop=8, crops=1, seed=seed,
                                          factors=(parse_factors("1.25"),))
        )
    )  # fmt: skip
    # A crop at whole latent pixels, so that the whole picture's latent has the same ones.
    left, top = (place // 8 * 8 for place in job.places[0])
    side = job.large[0]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = encoder((to_range(pixels) + 1) / 2)
        crop = encoder((to_range(pixels[..., top : top + side, left : left + side]) + 1) / 2)
    cut_off = job.margins[0]
    inside = crop[..., cut_off : side // 8 - cut_off, cut_off : side // 8 - cut_off]
    there = whole[..., top // 8 :, left // 8 :][
        ..., cut_off : side // 8 - cut_off, cut_off : side // 8 - cut_off
    ]
    difference = (inside - there).abs().max() / there.std()
    assert difference < 1e-4 if margin else difference > 1e-2
