"""Perceptual hashes: near copies are near, other pictures far."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lib_latent_upscale.training.fingerprints import BITS, NearCopies, fingerprint


def picture(seed: int, side: int = 200) -> Image.Image:
    """Soft random shapes: as pictures have it, most of it in the low frequencies."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 11, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side * 11 // 8, side), Image.Resampling.BICUBIC)


def recompressed(one: Image.Image) -> Image.Image:
    file = io.BytesIO()
    one.save(file, "JPEG", quality=20)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda one: one.resize((one.width // 3, one.height // 3)),
    "stretched": lambda one: one.resize((150, 150)),
    "recompressed": recompressed,
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.1),
    "grey": lambda one: one.convert("L").convert("RGB"),
    "a little cropped": lambda one: ImageOps.crop(one, 3),
}


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_near(change: str) -> None:
    for seed in range(10):
        one = picture(seed)
        print(change, bits(fingerprint(one).hash, fingerprint(CHANGES[change](one)).hash))
        assert bits(fingerprint(one).hash, fingerprint(CHANGES[change](one)).hash) <= 8


def test_mirrored_copies_are_near_the_mirrored_hash() -> None:
    for seed in range(10):
        one, other = fingerprint(picture(seed)), fingerprint(ImageOps.mirror(picture(seed)))
        assert bits(one.mirrored, other.hash) <= 2
        assert bits(one.hash, other.hash) > 10


def test_other_pictures_are_far() -> None:
    hashes = [fingerprint(picture(seed)).hash for seed in range(20)]
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 12
    assert all(hash.bit_length() <= BITS for hash in hashes)


def test_contrast_is_in_grey_levels() -> None:
    assert fingerprint(Image.new("RGB", (50, 50), "red")).contrast == 0
    halves = Image.new("RGB", (64, 64))
    halves.paste("white", (0, 0, 32, 64))
    assert fingerprint(halves).contrast == 127.5


@given(
    known=st.lists(st.integers(0, 2**BITS - 1), max_size=8),
    near=st.integers(0, 7),
    flips=st.sets(st.integers(0, BITS - 1), max_size=12),
    distance=st.integers(-1, 12),
)
def test_near_copies_are_found_as_by_comparing_all(
    known: list[int], near: int, flips: set[int], distance: int
) -> None:
    asked = known[near] if near < len(known) else 0
    for bit in flips:
        asked ^= 1 << bit
    copies = NearCopies(distance)
    for number, one in enumerate(known):
        copies.add(one, str(number))
    found = copies.find(asked)
    wanted = {str(n) for n, one in enumerate(known) if bits(one, asked) <= distance}
    assert (found in wanted) if wanted else found is None
