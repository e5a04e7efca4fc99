"""The memory that a run will take: estimated near what is measured, and told to the host."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import kernels, winograd
from lib_latent_upscale.architectures.layers.chunks import chunk_limit
from lib_latent_upscale.bench import measure
from lib_latent_upscale.cache import PlainResidence, UpscalerCache
from lib_latent_upscale.engine import _MARGIN, Engine
from lib_latent_upscale.inference import LatentUpscaler, load
from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.weights import files

from . import published

BUNDLED = files.MODEL_FOLDER / "compact-sd15-x2.safetensors"


def upscaler(name: str) -> LatentUpscaler:
    network = from_state_dict(published.small_state_dict(name), **published.told(name))
    return LatentUpscaler(network.requires_grad_(False), SD15, SD15.unet, name)


def fuses_masked_attention() -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 3)


@pytest.mark.parametrize(
    "name", ["DAT6x6", "SwinFIR4x6", "CRAFT7x6", "DRCTFIR12x6", "city96_x2.0", "ttl"]
)
def test_the_estimate_is_near_what_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 and without a CPU's own ways: it is for devices that have none of these."""
    if name == "DAT6x6" and not fuses_masked_attention():
        pytest.skip("this torch's attention with masks is not fused on a CPU")
    monkeypatch.setattr(kernels, "_work", lambda dtype: False)
    monkeypatch.setattr(winograd, "pays", lambda x, weight, bias: False)
    one, x = upscaler(name), torch.randn(1, 4, 48, 48)
    estimate = one.working_bytes(x.shape, (96, 96), torch.float32)
    with torch.inference_mode():
        measured = measure.peak_bytes(lambda: one._passes(x, (96, 96), None), "cpu")
    assert 1 / _MARGIN < estimate / measured < 1.3, (estimate, measured)
    assert 0.4 < one.working_bytes(x.shape, (96, 96), torch.float16) / estimate < 0.8


def test_blocks_that_are_alike_are_not_run_again_and_again() -> None:
    """The estimate of the whole network is that of running every block."""
    one = upscaler("SwinFIR4x6")
    estimate = one.working_bytes((1, 4, 32, 32), (64, 64), torch.float32)
    type(one.network).block_types, kept = (), type(one.network).block_types
    try:
        exact = one.working_bytes((1, 4, 32, 32), (64, 64), torch.float32)
    finally:
        type(one.network).block_types = kept
    assert estimate == pytest.approx(exact, rel=0.3)


def test_larger_latents_batches_and_passes_take_more() -> None:
    one = load(BUNDLED)
    base = one.working_bytes((1, 4, 16, 16), (32, 32), torch.float32)
    assert one.working_bytes((2, 4, 16, 16), (32, 32), torch.float32) == pytest.approx(2 * base)
    assert one.working_bytes((1, 4, 16, 16), (64, 64), torch.float32) > 3 * base
    assert one.working_bytes((1, 4, 16, 16), (32, 32), torch.bfloat16) == pytest.approx(base / 2)
    assert all(not weight.is_meta for weight in one.network.parameters())


def test_pieces_are_in_the_estimate() -> None:
    one = upscaler("SwinFIR4x6")
    whole = one.working_bytes((1, 4, 96, 96), (192, 192), torch.float32)
    with chunk_limit(1 << 18):
        assert one.working_bytes((1, 4, 96, 96), (192, 192), torch.float32) < whole


class Shared(PlainResidence):
    """A device that others share: "meta" in the place of a GPU."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def enter(self, network: nn.Module, device: torch.device, working: int = 0) -> None:
        self.asked.append(working)
        if len(self.asked) % 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        raise RuntimeError("enough")


def test_the_engine_tells_the_residence_what_a_run_needs() -> None:
    shared = Shared()
    cache = UpscalerCache(residence=shared)
    engine, model = Engine(cache, log=lambda line: None), cache.get(BUNDLED)
    latent: Tensor = torch.zeros(1, 4, 64, 64)

    def run() -> float:
        started = time.perf_counter()
        with pytest.raises(RuntimeError, match="enough"):
            engine.upscale(
                model, latent, (128, 128), device=torch.device("meta"), dtype=torch.float16
            )
        return time.perf_counter() - started

    run()
    first, second = shared.asked  # the second has less room to work in: no figure is known
    assert first > model.upscaler.working_bytes(latent.shape, (128, 128), torch.float16)
    assert second == 0
    run()
    assert shared.asked[2] == first


def test_a_limit_of_the_users_is_no_sign_of_too_little_memory() -> None:
    shared = Shared()
    cache = UpscalerCache(residence=shared)
    engine, model = Engine(cache, log=lambda line: None), cache.get(BUNDLED)
    with pytest.raises(RuntimeError, match="enough"):
        engine.upscale(
            model, torch.zeros(1, 4, 64, 64), (128, 128), device=torch.device("meta"), limit=8 << 20
        )
    first, second = shared.asked
    assert first > 0 and second == 0


def test_on_the_cpu_nobody_is_asked() -> None:
    shared = Shared()
    cache = UpscalerCache(residence=shared)
    engine, model = Engine(cache, log=lambda line: None), cache.get(BUNDLED)
    with pytest.raises(RuntimeError, match="enough"):
        engine.upscale(model, torch.zeros(1, 4, 8, 8), (16, 16), dtype=torch.bfloat16)
    assert set(shared.asked) == {0}
