"""`HookedLatent`: one function is answered, and nobody else notices it."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lib_latent_upscale.webui.hooked import HookedLatent, unhook

from .jobs import bicubic


def answer(latent: Tensor, size: tuple[int, int]) -> Tensor:
    assert type(latent) is Tensor
    return latent.new_full((*latent.shape[:2], *size), 7.0)


@pytest.fixture
def plain() -> Tensor:
    return torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hooked(plain: Tensor) -> HookedLatent:
    return HookedLatent.of(plain, answer)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.interpolate(x, size=(16, 12), mode="bicubic", antialias=True),
        lambda x: F.interpolate(x, (16, 12)),
        lambda x: F.interpolate(input=x, size=[16, 12], mode="nearest"),
        lambda x: F.interpolate(x, size=torch.Size((16, 12))),
    ],
)
def test_interpolate_is_answered(hooked: HookedLatent, call: Callable[[Tensor], Tensor]) -> None:
    result = call(hooked)
    assert type(result) is Tensor
    assert result.shape == (2, 4, 16, 12) and bool((result == 7).all())


def test_one_number_is_a_square(hooked: HookedLatent) -> None:
    assert F.interpolate(hooked, size=16).shape == (2, 4, 16, 16)


def test_interpolate_by_a_factor_is_not_the_hosts_call(plain: Tensor, hooked: HookedLatent) -> None:
    assert torch.equal(F.interpolate(hooked, scale_factor=2), F.interpolate(plain, scale_factor=2))


def _in_place(x: Tensor) -> Tensor:
    x += 1
    return x


def _write(x: Tensor) -> Tensor:
    x[0] = 0
    return x * 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[0],
        lambda x: x[:, :, 1:-1, ::2],
        lambda x: x[None],
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: x.to(torch.float16),
        lambda x: x.to("cpu"),
        lambda x: x.cpu(),
        lambda x: x.float(),
        lambda x: x.clone(),
        lambda x: x.detach(),
        lambda x: x.contiguous(),
        lambda x: x.mul_(2),
        lambda x: torch.cat([x, x]),
        lambda x: torch.cat((x, torch.ones(1, 4, 8, 6)), dim=0),
        lambda x: torch.cat(tensors=[x, x]),
        lambda x: torch.clamp(input=x, min=0),
        lambda x: torch.stack([x[0], x[1]]),
        lambda x: torch.where(x > 0, x, torch.zeros(())),
        lambda x: x.chunk(2)[0],
        lambda x: torch.split(x, 1)[1],
        lambda x: next(iter(x)),
        lambda x: list(x)[1],
        lambda x: x.max(dim=1)[0],
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.conv2d(x, torch.ones(1, 4, 1, 1)),
        lambda x: torch.add(x, x, out=torch.empty(2, 4, 8, 6)),
        lambda x: copy.copy(x),
        lambda x: copy.deepcopy(x),
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: torch.from_numpy(x.numpy()),
        _in_place,
        _write,
    ],
)
def test_every_other_function_is_the_plain_tensors(
    plain: Tensor, function: Callable[[Any], Tensor]
) -> None:
    wanted = function(plain.clone())
    result = function(HookedLatent.of(plain.clone(), answer))
    assert type(result) is Tensor
    assert result.dtype == wanted.dtype and torch.equal(result, wanted)


def test_properties(plain: Tensor, hooked: HookedLatent) -> None:
    assert hooked.shape == plain.shape and hooked.dtype == plain.dtype
    assert hooked.device == plain.device and len(hooked) == 2 and hooked.ndim == 4
    assert isinstance(hooked, Tensor)
    assert repr(hooked) == repr(plain)


def test_what_is_written_into_it_is_written_into_the_latent(
    plain: Tensor, hooked: HookedLatent
) -> None:
    hooked[0] = 5
    hooked.add_(1)
    assert bool((plain[0] == 6).all())


def test_saved_files_know_no_hook(hooked: HookedLatent) -> None:
    file = io.BytesIO()
    torch.save(hooked, file)
    assert b"lib_latent_upscale" not in file.getvalue()


def test_hooking_twice_is_hooking_once(plain: Tensor, hooked: HookedLatent) -> None:
    again = HookedLatent.of(hooked, lambda latent, size: answer(latent, size) + 1)
    assert type(again.plain) is Tensor
    assert bool((F.interpolate(again, size=(3, 3)) == 8).all())
    assert bool((F.interpolate(hooked, size=(3, 3)) == 7).all())


def test_inference_mode(plain: Tensor) -> None:
    with torch.inference_mode():
        hooked = HookedLatent.of(plain + 0, answer)
        assert type(hooked + 1) is Tensor
        assert F.interpolate(hooked, size=(3, 3)).shape == (2, 4, 3, 3)


def test_unhook(plain: Tensor, hooked: HookedLatent) -> None:
    assert unhook(hooked) is plain
    found = unhook(([hooked, 1], {"x": (hooked,)}))
    assert found[0][0] is plain and found[1]["x"][0] is plain


def test_another_thread_interpolates_as_ever(plain: Tensor) -> None:
    original = F.interpolate
    other, seen = torch.randn(1, 3, 8, 8), []

    def previewing(latent: Tensor, size: tuple[int, int]) -> Tensor:
        # In the middle of the answer, as a live preview does.
        def preview() -> None:
            seen.append((F.interpolate is original, F.interpolate(other, size=(16, 16))))

        thread = threading.Thread(target=preview)
        thread.start()
        thread.join()
        return answer(latent, size)

    F.interpolate(HookedLatent.of(plain, previewing), size=(16, 12))
    ((same_function, result),) = seen
    assert same_function and F.interpolate is original
    assert torch.equal(result, original(other, size=(16, 16)))


@pytest.mark.parametrize(
    "tidy",
    [True, False],
    ids=["functools.wraps", "bare"],
)
def test_a_function_put_over_interpolate_still_meets_it(
    plain: Tensor, monkeypatch: pytest.MonkeyPatch, tidy: bool
) -> None:
    original = F.interpolate

    def over(*args: Any, **kwargs: Any) -> Tensor:
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "interpolate", functools.wraps(original)(over) if tidy else over)
    result = torch.nn.functional.interpolate(HookedLatent.of(plain, answer), size=(16, 12))
    assert bool((result == 7).all())


def test_the_answer_is_not_the_plain_interpolation(plain: Tensor) -> None:
    # Guards the tests above: the answer they look for is nothing that torch gives by itself.
    assert not bool((bicubic(plain, (16, 12)) == 7).any())
