"""The networks: exact to the published ones, at any size, and clear about bad state dicts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib_latent_upscale import architectures
from lib_latent_upscale.architectures import StateDictError, from_state_dict
from lib_latent_upscale.architectures.layers.chunks import chunk_limit
from lib_latent_upscale.architectures.layers.restoration import pad_to_multiple

from . import published

GOLDEN_CASES = [
    (model, shape) for model in published.MODELS for shape in sorted(published.outputs(model))
]
SMALL = ("DAT6x6", "CRAFT7x6", "SwinFIR4x6", "DRCT12x6", "DRCTFIR12x6", "city96_x1.25", "ttl")


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(network: architectures.Network, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    with torch.no_grad():
        return network(x, size=size)


@pytest.fixture(scope="module")
def networks() -> dict[str, architectures.Network]:
    """The last full-size network built; the golden cases come sorted by model."""
    return {}


@pytest.mark.parametrize(("model", "shape"), GOLDEN_CASES)
def test_golden_output(networks: dict[str, architectures.Network], model: str, shape: str) -> None:
    if model not in networks:
        networks.clear()
        networks[model] = from_state_dict(published.state_dict(model), **published.told(model))
    size = tuple(map(int, shape.split("x")[4:])) or None
    expected = published.outputs(model)[shape]
    result = run(networks[model], published.latent(model, shape), size)
    assert result.shape == expected.shape
    assert relative_error(result, expected) < 1e-4


def test_compact_golden_output() -> None:
    check = load_file(published.GOLDEN / "compact-check.safetensors")
    folder = published.GOLDEN.parents[1] / "models"
    network = from_state_dict(load_file(folder / "compact-sd15-x2.safetensors"))
    assert relative_error(run(network, check["x"]), check["y"]) < 1e-5


@pytest.mark.parametrize("model", published.MODELS)
def test_state_dict_round_trip(model: str) -> None:
    weights = published.state_dict(model)
    exported = from_state_dict(weights, **published.told(model)).to_state_dict()
    assert exported.keys() == published.weight_keys(model)
    assert all(torch.equal(exported[key], weights[key]) for key in exported)


@pytest.mark.parametrize("model", SMALL)
def test_attributes_and_mode(model: str) -> None:
    network = from_state_dict(published.small_state_dict(model), **published.told(model))
    assert network.channels == 4
    assert network.scale == {"city96_x1.25": 1.25, "ttl": None}.get(model, 2)
    assert not network.training


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("size", [(8, 8), (8, 33), (9, 14), (17, 12), (24, 31)])
def test_any_size(model: str, size: tuple[int, int]) -> None:
    network = from_state_dict(published.small_state_dict(model), **published.told(model))
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    if network.scale is None:
        target = (size[0] + 5, 2 * size[1])
        assert run(network, x, target).shape == (1, 4, *target)
    else:
        expected = (int(size[0] * network.scale), int(size[1] * network.scale))
        assert network.output_size(*size) == expected
        assert run(network, x).shape == (1, 4, *expected)


@pytest.mark.parametrize("model", SMALL)
def test_a_batch_is_its_pictures(model: str) -> None:
    network = from_state_dict(published.small_state_dict(model), **published.told(model))
    x = torch.randn(3, 4, 9, 20, generator=torch.Generator().manual_seed(1))
    size = (15, 33) if network.scale is None else None
    together = run(network, x, size)
    for index in range(3):
        alone = run(network, x[index : index + 1], size)
        assert relative_error(together[index : index + 1], alone) < 1e-5


@pytest.mark.parametrize("model", ["DAT6x6", "SwinFIR4x6", "CRAFT7x6"])
def test_derived_entries_may_be_missing_or_wrong(model: str) -> None:
    weights = published.small_state_dict(model)
    x = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(2))
    expected = run(from_state_dict(weights), x)
    keys = published.weight_keys(model)
    without = {key: value for key, value in weights.items() if key in keys}
    wrong = {key: value if key in keys else value + 7 for key, value in weights.items()}
    assert len(without) < len(weights)
    assert torch.equal(run(from_state_dict(without), x), expected)
    assert torch.equal(run(from_state_dict(wrong), x), expected)


@pytest.mark.parametrize("model", ["DAT6x6", "SwinFIR4x6", "CRAFT7x6"])
def test_constants_follow_the_weights(model: str) -> None:
    """What is computed once must be computed again when a weight changes in place."""
    weights = published.small_state_dict(model)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    network = from_state_dict(weights)
    before = run(network, x)
    changed = {
        key: value * 2 if key.endswith(("pos3.2.weight", "bias_table", "running_var")) else value
        for key, value in network.to_state_dict().items()
    }
    network.load_state_dict(changed, strict=False)
    after = run(network, x)
    assert relative_error(after, before) > 1e-3
    assert torch.equal(after, run(from_state_dict(changed), x))


def test_constants_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_latent_upscale.architectures.layers import position, swin

    calls = []

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return position.spread(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(swin, "spread", counted)
    network = from_state_dict(published.small_state_dict("SwinFIR4x6"))
    x = torch.randn(1, 4, 16, 16)
    run(network, x)
    blocks = len(calls)
    run(network, torch.randn(2, 4, 24, 40))  # another size, another batch
    assert blocks == 6
    assert len(calls) == blocks


def test_training_sees_the_weights_of_every_step() -> None:
    network = from_state_dict(published.small_state_dict("DAT6x6"))
    table = network.get_parameter("layers.0.blocks.0.attn.attns.0.pos.pos3.2.weight")
    x = torch.randn(1, 4, 16, 16)
    network(x).sum().backward()
    assert table.grad is not None
    assert float(table.grad.abs().sum()) > 0


def test_scale_of_city96_must_be_told() -> None:
    weights = published.state_dict("city96_x1.5")
    with pytest.raises(TypeError, match="'scale'"):
        from_state_dict(weights)
    assert from_state_dict(weights, scale=1.5).scale == 1.5


def test_split_size_can_be_told() -> None:
    weights = published.small_state_dict("DAT6x6")
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(4))
    published_size = run(from_state_dict(weights), x)
    same = run(from_state_dict(weights, split_size=(8, 16)), x)
    other = run(from_state_dict(weights, split_size=(16, 8)), x)
    assert torch.equal(published_size, same)
    assert relative_error(other, published_size) > 1e-3


def test_unknown_hyperparameter() -> None:
    with pytest.raises(TypeError, match="'colour'"):
        from_state_dict(published.state_dict("ttl"), colour=3)


@pytest.mark.parametrize("model", SMALL)
def test_missing_key_is_named(model: str) -> None:
    weights = dict(published.small_state_dict(model))
    key = next(key for key in reversed(list(weights)) if key in published.weight_keys(model))
    del weights[key]
    with pytest.raises(StateDictError, match=key.replace(".", r"\.")):
        from_state_dict(weights, **published.told(model))


@pytest.mark.parametrize("model", SMALL)
def test_unknown_key_is_named(model: str) -> None:
    weights = {**published.small_state_dict(model), "colour.weight": torch.zeros(3)}
    with pytest.raises(StateDictError, match=r"colour\.weight"):
        from_state_dict(weights, **published.told(model))


@pytest.mark.parametrize("model", SMALL)
def test_misshapen_key_is_named(model: str) -> None:
    weights = dict(published.small_state_dict(model))
    key = next(key for key in reversed(list(weights)) if key in published.weight_keys(model))
    weights[key] = torch.zeros(*weights[key].shape, 2)
    with pytest.raises(StateDictError, match=key.replace(".", r"\.")):
        from_state_dict(weights, **published.told(model))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((4,), torch.nan), "NaN"),
        (torch.full((4,), torch.inf), "infinite"),
        (torch.zeros(4, dtype=torch.int64), "int64"),
        ("text", "str"),
    ],
)
def test_bad_tensor_is_named(value: object, message: str) -> None:
    weights = {**published.small_state_dict("SwinFIR4x6"), "conv_last.bias": value}
    with pytest.raises(StateDictError, match=rf"conv_last\.bias.*{message}"):
        from_state_dict(weights)  # type: ignore[arg-type]


def test_foreign_state_dicts() -> None:
    with pytest.raises(StateDictError, match=r"'model\.0\.weight'"):
        from_state_dict({"model.0.weight": torch.zeros(1)})
    with pytest.raises(StateDictError, match="empty"):
        from_state_dict({})


def test_an_absurd_index_costs_nothing() -> None:
    weights = dict(published.small_state_dict("SwinFIR4x6"))
    weights["layers.999999999.conv.fusion.bias"] = torch.zeros(96)
    with pytest.raises(StateDictError, match=r"layers\.1"):
        from_state_dict(weights)


def test_half_precision_weights_become_float32() -> None:
    weights = {
        key: value.half() if value.is_floating_point() else value
        for key, value in published.small_state_dict("SwinFIR4x6").items()
    }
    assert {p.dtype for p in from_state_dict(weights).parameters()} == {torch.float32}


def test_pad_reflects_or_repeats_the_edge() -> None:
    x = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 3, 6)
    padded = pad_to_multiple(x, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]  # by reflection
    rows = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 8)
    assert pad_to_multiple(rows, 8)[0, 0, :, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert pad_to_multiple(padded, 8) is padded


@pytest.mark.parametrize("model", ["SwinFIR4x6", "CRAFT7x6", "DAT6x6", "DRCT12x6", "DRCTFIR12x6"])
@pytest.mark.parametrize("limit", [1, 300_000])
def test_in_pieces_it_is_the_same(model: str, limit: int) -> None:
    network = from_state_dict(published.small_state_dict(model))
    x = torch.randn(2, 4, 19, 37, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(x)
        with chunk_limit(limit):
            pieces = network(x)
    assert (pieces - whole).norm() / whole.norm() < 1e-5
