"""A call of a network under way: its progress, and who stops it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lib_latent_upscale import Interrupted, LatentUpscaler, load
from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers.chunks import chunk_limit
from lib_latent_upscale.spaces import SD15

from . import published


def upscaler(model: str) -> LatentUpscaler:
    weights = published.small_state_dict(model)
    network = from_state_dict(weights, **published.told(model)).eval().requires_grad_(False)
    return LatentUpscaler(network, SD15, SD15.unet, model)


def latent(side: int = 16) -> Tensor:
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", ["SwinFIR4x6", "CRAFT7x6", "DAT6x6", "DRCT12x6", "city96_x2.0"])
def test_progress_rises_through_the_whole_network(model: str) -> None:
    parts: list[float] = []
    upscaler(model)(latent(), (32, 32), progress=parts.append)
    assert parts == sorted(parts) and 0 <= parts[0] < 0.1 and 0.8 < parts[-1] <= 1
    # CRAFT's one group here has its branches in turn, which are listed one after the other.
    assert max(b - a for a, b in itertools.pairwise(parts)) < (0.8 if "CRAFT" in model else 0.25)


@pytest.mark.parametrize("tile", [None, 24])
def test_progress_counts_passes_by_their_pixels(tile: int | None) -> None:
    parts: list[float] = []
    load("compact-sd15")(latent(), (64, 64), tile=tile, progress=parts.append)
    first_of_second_pass = 16 * 16 / (16 * 16 + 32 * 32)
    assert parts == sorted(parts) and parts[-1] <= 1
    assert sum(part < first_of_second_pass for part in parts) == len(parts) // (
        2 if not tile else 5
    )
    assert any(part == pytest.approx(first_of_second_pass) for part in parts)


def after(count: int) -> Callable[[], bool]:
    """A `should_stop` that says yes from the call after `count` others on."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def test_pieces_are_steps() -> None:
    # Attention over all positions is one step, unless it is worked out in pieces.
    resizer = upscaler("ttl")
    with pytest.raises(Interrupted, match="ttl"):
        resizer(latent(), (32, 32), after(30))
    asked: list[int] = []

    def never() -> bool:
        asked.append(0)
        return False

    whole = resizer(latent(), (32, 32), never)
    few, asked[:] = len(asked), []
    with chunk_limit(1 << 20):
        pieces = resizer(latent(), (32, 32), never)
    assert len(asked) > few
    assert torch.allclose(whole, pieces, atol=1e-4)


def test_one_call_within_another_keeps_its_own() -> None:
    # As where a host's live preview upscales in the thread of a job.
    up, outer, inner = load("bundled-sd15"), [], []

    def tell(part: float) -> None:
        outer.append(part)
        if len(outer) == 1:
            up(latent(8), (16, 16), progress=inner.append)

    up(latent(), (32, 32), progress=tell)
    assert len(outer) == len(inner) > 1
