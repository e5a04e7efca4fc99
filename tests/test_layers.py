"""What the networks share: fused linear layers, windows, attention, half precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import attention, constants, kernels, swin
from lib_latent_upscale.architectures.layers.attention import (
    channel_mix,
    channel_weights,
    masked_bias,
    projected_channel_attention,
    window_attention,
)
from lib_latent_upscale.architectures.layers.chunks import by_rows, chunk_limit, pieces_of
from lib_latent_upscale.architectures.layers.linear import Linear, linear
from lib_latent_upscale.architectures.layers.tokens import Conv2d, DepthwiseConv2d, convolve
from lib_latent_upscale.architectures.layers.windows import Grid, windows_of

from . import published
from .published import relative_error

GRIDS = [
    Grid((4, 4)),
    Grid((4, 4), (2, 2)),
    Grid((2, 8), (1, 4)),
    Grid((8, 2), (4, 1), masked=False),
]


@pytest.fixture(params=[True, False], ids=["fused", "general"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(kernels, "_work", lambda dtype: False)


def test_the_kernels_of_torch_2_1_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ended the process now and then."""
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.1.2+cu121"))
    assert not kernels._work.__wrapped__(torch.float32)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0"))
    assert kernels._work.__wrapped__(torch.float32) is torch.backends.mkldnn.is_available()


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype: torch.dtype, error: float, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 7, 18, dtype=dtype), torch.randn(30, 18, dtype=dtype)
    b, residual = torch.randn(30, dtype=dtype) if bias else None, torch.randn(2, 5, 7, 30).to(dtype)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    with torch.no_grad():
        assert relative_error(linear(x, weight, b), exact) < error
        assert relative_error(linear(x, weight, b, activation="gelu"), F.gelu(exact)) < error
        assert relative_error(linear(x, weight, b, activation="relu"), F.relu(exact)) < error
        assert relative_error(linear(x, weight, b, residual=residual), exact + residual) < error


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("groups", [1, 18])
@pytest.mark.parametrize("bias", [True, False])
def test_convolve(dtype: torch.dtype, error: float, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(2, 2, 5, 7, 18).to(dtype)
    weight = torch.randn(18, 18 // groups, 3, 3).to(dtype)
    b = torch.randn(18).to(dtype) if bias else None
    exact = F.conv2d(
        x.double().permute(0, 3, 1, 2),
        weight.double(),
        None if b is None else b.double(),
        padding=1,
        groups=groups,
    ).permute(0, 2, 3, 1)
    with torch.no_grad():
        results = {
            "plain": (convolve(x, weight, b), exact),
            "gelu": (convolve(x, weight, b, activation="gelu"), F.gelu(exact)),
            "silu": (convolve(x, weight, b, activation="silu"), F.silu(exact)),
            "residual": (convolve(x, weight, b, residual=other), exact + other),
            "gate": (convolve(x, weight, b, gate=other), exact * other),
        }
        if groups == 1:
            both = convolve(x, weight, b, "relu", residual=other)
            results["both"] = (both, F.relu(exact + other))
        wide = convolve(x, weight, b, residual=other.float())  # a skip in float32 stays one
    for name, (result, expected) in results.items():
        assert relative_error(result, expected) < error, name
        assert result.dtype == dtype and result.is_contiguous(), name
    assert wide.dtype == torch.float32
    with pytest.raises(AssertionError, match="one of them"):
        convolve(x, weight, b, residual=other, gate=other)


def test_convolve_records_gradients() -> None:
    x = torch.randn(1, 4, 4, 3, requires_grad=True)
    gate = torch.randn(1, 4, 4, 3, requires_grad=True)
    convolve(x, torch.ones(3, 1, 3, 3), None, gate=gate).sum().backward()
    assert x.grad is not None and gate.grad is not None
    assert float(gate.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_weights_are_the_same_weights(dtype: torch.dtype) -> None:
    """In whole, in shares, of any number of tokens, and after the layer's have changed."""
    torch.manual_seed(0)
    layers = (Linear(18, 36), Conv2d(18, 36, 1), Conv2d(18, 36), DepthwiseConv2d(18), Conv2d(1, 8))
    for layer in layers:
        layer.to(dtype)
        for size in ((1, 3), (40, 50)):
            channels = 1 if isinstance(layer, nn.Conv2d) and layer.in_channels == 1 else 18
            x = torch.randn(2, *size, channels).to(dtype)
            for change in (1.0, 2.0):
                layer.weight.mul_(change)
                without = linear if isinstance(layer, Linear) else convolve
                plain = without(x, layer.weight, layer.bias)
                assert relative_error(layer(x), plain) < (1e-6 if dtype == torch.float32 else 1e-2)
    one, other = Linear(18, 36).to(dtype).parts(torch.randn(2, 18).to(dtype), 2)
    assert not torch.equal(one, other)


@pytest.mark.skipif(not kernels.usable(torch.ones(1)), reason="this torch has no fused kernels")
def test_packed_weights_are_packed_once() -> None:
    layer, x = Linear(6, 12), torch.randn(1, 4, 5, 6)
    counts = []
    with torch.no_grad():
        for _ in range(2):
            before = constants.computed()
            layer.parts(x, 3)
            layer(x)
            counts.append(constants.computed() - before)
    assert counts == [4, 0]
    copy.deepcopy(layer)(x)  # without what cannot be copied


def test_parts_are_the_whole() -> None:
    layer, x = Linear(6, 12), torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        parts = layer.parts(x, 3, activation="gelu")
        assert all(part.is_contiguous() for part in parts)
        torch.testing.assert_close(torch.cat(parts, dim=-1), layer(x, activation="gelu"))


def test_linear_records_gradients() -> None:
    layer, x = Linear(6, 4), torch.randn(3, 6, requires_grad=True)
    layer(x, residual=torch.ones(3, 4)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(3, 6))
    layer.weight.requires_grad_(False)  # the bias alone
    layer(torch.ones(3, 6)).sum().backward()
    assert layer.bias.grad is not None and layer.bias.grad.tolist() == [6.0] * 4


@pytest.mark.parametrize(
    "grids", [GRIDS[:1], GRIDS[1:2], GRIDS[:2], GRIDS[2:], [GRIDS[0], GRIDS[3]]], ids=str
)
def test_cutting_and_joining(grids: list[Grid]) -> None:
    x = torch.randn(2, 16, 24, 6)
    windows = windows_of(x, *grids)
    for limit in (1, 5000, 1 << 30):
        with chunk_limit(limit):
            cut = [piece.cut(x) for piece in windows.pieces(x)]
        assert sum(one.numel() for one in cut) == x.numel()
        assert torch.equal(windows.join(cut, like=x), x)
    masks = any(grid.has_masks for grid in grids)
    assert len(cut) == (len(grids) if masks else 1)  # what fits is one piece
    assert windows_of(x + 1, *grids) is windows  # worked out once


@pytest.mark.parametrize(
    ("dtype", "tiles"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_window_attention(
    grid: Grid, dtype: torch.dtype, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against attention of each token to all of the picture, the others masked."""
    from lib_latent_upscale.architectures.layers import attention

    monkeypatch.setattr(attention, "_has_tiles", lambda: tiles)
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", 1000)  # several rounds, one of them short
    torch.manual_seed(0)
    heads, dim, height, width = 3, 5, 16, 24
    rows, columns = grid.window
    length = rows * columns
    q, k, v = torch.randn(3, 1, height, width, heads * dim).to(dtype)
    bias = torch.randn(heads, length, length)

    windows, attended = windows_of(v, grid), []
    with chunk_limit(20_000):  # in several pieces
        for piece in windows.pieces(v):
            cut = [piece.cut(x) for x in (q, k, v)]
            attended += window_attention(*cut, piece.groups, masked_bias(bias, grid).to(dtype))
    result = windows.join(attended, like=v)

    row = (torch.arange(height) - grid.shift[0]) % height
    column = (torch.arange(width) - grid.shift[1]) % width
    window = (row // rows * 1000)[:, None] + (column // columns)[None]
    inside = ((row % rows) * columns)[:, None] + (column % columns)[None]
    # Which of the picture's edges a token came round, if it came round one.
    side = (torch.arange(height) < grid.shift[0])[:, None] * 2
    side = side + (torch.arange(width) < grid.shift[1])[None]
    window, inside, side = window.flatten(), inside.flatten(), side.flatten()
    mask = bias[:, inside][:, :, inside]
    mask = mask.masked_fill(window[:, None] != window[None], -torch.inf)
    if grid.masked:
        mask = mask + (side[:, None] != side[None]) * -100.0
    q, k, v = (x.float().reshape(1, -1, heads, dim).transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = expected.transpose(1, 2).reshape(result.shape)
    assert relative_error(result, expected) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_wider_heads_attend_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = swin.WindowAttention(12, 3, 4, shifted=True).requires_grad_(False)
    x, skip = torch.randn(2, 1, 8, 8, 12)
    expected = block(x, skip)
    monkeypatch.setattr(swin, "head_width", lambda dim, like: dim + 3)
    torch.testing.assert_close(block(x, skip), expected)
    block.proj.weight.mul_(2)
    assert not torch.allclose(block(x, skip), expected)


@pytest.mark.parametrize("model", ["DAT6x6", "CRAFT7x6", "DRCT12x6"])
def test_a_gpu_gets_heads_that_its_fused_attention_takes(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = from_state_dict(published.small_state_dict(model)).requires_grad_(False)
    fused, short = F.scaled_dot_product_attention, []

    def watched(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        short.extend(one.shape[-1] % 8 for one in (q, k, v))
        return fused(q, k, v, **how)

    x = torch.randn(1, 4, 18, 21)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    expected = network(x)
    assert any(short)
    short.clear()
    monkeypatch.setattr(attention, "_is_gpu", lambda x: True)
    assert relative_error(network(x), expected) < 1e-5
    assert short and not any(short)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channel_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k = 40 * torch.randn(2, 2, 30, 30, 12)  # sums of squares that float16 does not hold
    temperature = torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    heads = [x.flatten(1, 2).unflatten(-1, (3, 4)).permute(0, 2, 3, 1) for x in (q, k)]
    normed = [F.normalize(x, dim=-1) for x in heads]
    expected = (normed[0] @ normed[1].transpose(-2, -1) * temperature).softmax(dim=-1)
    result = channel_weights(q.to(dtype), k.to(dtype), temperature.to(dtype))
    assert result.dtype == dtype
    assert relative_error(result, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("skips", [True, False])
def test_projected_channel_attention(batch: int, skips: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, batch, 6, 5, 12)
    temperature, projection = torch.rand(3, 1, 1), torch.randn(8, 12)
    skip = torch.randn(batch, 6, 5, 8) if skips else None
    expected = channel_mix(channel_weights(q, k, temperature), v) @ projection.T
    if skip is not None:
        expected = expected + skip
    result = projected_channel_attention(q, k, v, temperature, projection, skip)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    "model", [m for m in published.MODELS if m not in ("city96_x1.25", "city96_x1.5")]
)
def test_bfloat16(model: str) -> None:
    """Half precision is near enough to the published outputs."""
    shape = min(published.outputs(model))
    size = tuple(map(int, shape.split("x")[4:])) or None
    weights = published.state_dict(model)
    network = from_state_dict(weights, **published.told(model)).to(torch.bfloat16)
    x = published.latent(model, shape).to(torch.bfloat16)
    with torch.no_grad():
        result = network(x, size=size)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, published.outputs(model)[shape]) < 2e-2


@pytest.mark.parametrize("model", ["DAT6x6", "SwinFIR4x6", "CRAFT7x6", "DRCT12x6"])
def test_gradients_after_inference_mode(model: str) -> None:
    """What is kept from a call in inference mode must serve one that records gradients."""
    network = from_state_dict(published.small_state_dict(model)).requires_grad_(False)
    x = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        network(x)
    x.requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 12),
    batch=st.integers(1, 2),
    limit=st.integers(0, 40_000),
)
@settings(max_examples=60, deadline=None)
def test_rows_in_pieces_give_the_whole(height: int, width: int, batch: int, limit: int) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(3).requires_grad_(False)
    x, skip = torch.randn(2, batch, height, width, 3)

    def function(x: Tensor, skip: Tensor) -> Tensor:
        return conv(conv(x)) + skip

    with chunk_limit(limit):
        result = by_rows(function, x, skip, width=6, reach=2)
    torch.testing.assert_close(result, function(x, skip))


def test_pieces_cover_all_and_stay_within_the_limit() -> None:
    with chunk_limit(100):
        assert list(pieces_of(25, 10)) == [(0, 10), (10, 20), (20, 25)]
        assert list(pieces_of(2, 1000)) == [(0, 1), (1, 2)]  # one thing is the least
        with chunk_limit(10**9):
            assert list(pieces_of(25, 10)) == [(0, 25)]
        assert len(list(pieces_of(25, 10))) == 3
