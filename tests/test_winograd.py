"""3x3 convolutions by fewer multiplications: the same result, where they pay, and nowhere else."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import winograd
from lib_latent_upscale.architectures.layers.chunks import chunk_limit
from lib_latent_upscale.architectures.layers.tokens import Conv2d

from . import published
from .published import relative_error

WIDE = 128
"""Channels for which it pays."""


def directly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float64."""
    bias = None if bias is None else bias.double()
    picture = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias, padding=1)
    return picture.permute(0, 2, 3, 1)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 2),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    channels=st.sampled_from([(1, 1), (3, 8), (20, 6)]),
    bias=st.booleans(),
    limit=st.sampled_from([1, 5000, 1 << 28]),
)
def test_convolves(
    n: int, height: int, width: int, channels: tuple[int, int], bias: bool, limit: int
) -> None:
    torch.manual_seed(height * width)
    inner, out = channels
    x, weight = torch.randn(n, height, width, inner), torch.randn(out, inner, 3, 3)
    b = torch.randn(out) if bias else None
    with chunk_limit(limit):
        result = winograd.convolve(x, winograd.transformed(weight), b)
    assert relative_error(result, directly(x, weight, b).float()) < 1e-5


def layer() -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(WIDE, WIDE).requires_grad_(False)


@pytest.fixture
def convolve(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stands in front of it, and counts."""
    counted = Mock(side_effect=winograd.convolve)
    monkeypatch.setattr(winograd, "convolve", counted)
    return counted


def test_a_wide_layer_takes_it(convolve: Mock) -> None:
    conv, x, other = layer(), torch.randn(1, 33, 35, WIDE), torch.randn(1, 33, 35, WIDE)
    exact = directly(x, conv.weight, conv.bias).float()
    assert relative_error(conv(x), exact) < 1e-5
    assert conv(x).is_contiguous()
    assert relative_error(conv(x, activation="gelu"), F.gelu(exact)) < 1e-5
    assert relative_error(conv(x, residual=other), exact + other) < 1e-5
    assert convolve.call_count == 4
    assert conv.packed.tensors()[0].shape == (36, WIDE, WIDE)


def test_changed_weights_are_transformed_anew(convolve: Mock) -> None:
    conv, x = layer(), torch.randn(1, 32, 32, WIDE)
    conv(x)
    conv.weight.mul_(2)
    assert relative_error(conv(x), directly(x, conv.weight, conv.bias).float()) < 1e-5
    assert convolve.call_count == 2


@pytest.mark.parametrize("case", ["narrow", "small", "half", "trained", "tuned"])
def test_others_do_not(convolve: Mock, case: str) -> None:
    conv, x = layer(), torch.randn(1, 32, 32, WIDE)
    if case == "narrow":
        conv, x = Conv2d(16, 16).requires_grad_(False), x[..., :16]
    elif case == "small":
        x = x[:, :16]
    elif case == "half":
        conv, x = conv.bfloat16(), x.bfloat16()
    elif case == "trained":
        conv.requires_grad_()
    elif case == "tuned":
        assert conv.bias is not None
        conv.bias.requires_grad_()
    conv(x)
    convolve.assert_not_called()


@pytest.mark.parametrize("model", ["DAT6x6", "CRAFT7x6", "SwinFIR4x6", "DRCT12x6", "city96_x2.0"])
def test_golden_output(model: str, convolve: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every convolution that there is made in this way."""
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_TOKENS", 1)
    network = from_state_dict(published.state_dict(model), **published.told(model))
    shape = min(published.outputs(model))
    with torch.inference_mode():
        result = network(published.latent(model, shape))
    assert relative_error(result, published.outputs(model)[shape]) < 1e-4
    assert convolve.call_count >= 3
