"""Upscaling to any size, in the right scale, dtype and latent space."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale import (
    Interrupted,
    LatentUpscaler,
    WeightsError,
    architectures,
    latent_files,
)
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.demo import ASSETS
from lib_latent_upscale.inference import AFTER_PASSES
from lib_latent_upscale.preview import load_preview_decoder
from lib_latent_upscale.resample import resample
from lib_latent_upscale.spaces import RAW, SD15, SDXL, SPACES, LatentScale

from . import published


def latent(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_city96(scale: float, seed: int = 0) -> architectures.Network:
    """A city96 network of a few channels: quick, and of any factor."""
    torch.manual_seed(seed)
    return architectures.City96(channels=4, dim=4, depth=1, scale=scale).eval()


def upscaler(scale: float = 2.0, input_scale: LatentScale = SD15.unet) -> LatentUpscaler:
    return LatentUpscaler(tiny_city96(scale), SD15, input_scale, "tiny")


@pytest.fixture(scope="module")
def bundled() -> LatentUpscaler:
    return lib_latent_upscale.load("compact-sd15")


def test_bundled_model_gives_its_golden_output(bundled: LatentUpscaler) -> None:
    check = load_file(published.GOLDEN / "compact-check.safetensors")
    result = bundled(check["x"], (48, 40))
    assert float((result - check["y"]).norm() / check["y"].norm()) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(8, 40), st.integers(8, 40)),
    size=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    scale=st.sampled_from([1.25, 1.5, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_any_size_and_type(
    shape: tuple[int, int, int], size: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    n, h, w = shape
    x = latent(n, 4, h, w).to(dtype)
    result = upscaler(scale)(x, size)
    assert result.shape == (n, 4, *size)
    assert result.dtype == dtype
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_result_has_the_input_type(bundled: LatentUpscaler, dtype: torch.dtype) -> None:
    assert bundled(latent(1, 4, 16, 16).to(dtype), (32, 32)).dtype == dtype


def test_at_its_factor_the_result_is_the_network_output() -> None:
    up = upscaler(1.5)
    x = latent(2, 4, 17, 23)
    with torch.no_grad():
        expected = up.network(x)
    assert torch.equal(up(x, (25, 34)), expected)


def test_the_same_size_gives_the_latent_itself(bundled: LatentUpscaler) -> None:
    x = latent(1, 4, 16, 24)
    assert bundled(x, (16, 24)) is x


@pytest.mark.parametrize("size", [(8, 12), (15, 24), (16, 10)])
def test_no_side_larger_is_resampled_only(bundled: LatentUpscaler, size: tuple[int, int]) -> None:
    x = latent(1, 4, 16, 24)
    assert torch.equal(bundled(x, size), resample(x, size))


def test_smaller_target_is_one_pass_and_down() -> None:
    up = upscaler(2.0)
    x = latent(1, 4, 16, 24)
    with torch.no_grad():
        expected = resample(up.network(x), (24, 30), AFTER_PASSES)
    assert torch.allclose(up(x, (24, 30)), expected, atol=1e-6)


def test_larger_target_is_repeated_passes_and_down() -> None:
    up = upscaler(2.0)
    x = latent(1, 4, 8, 12)
    with torch.no_grad():
        expected = resample(up.network(up.network(x)), (24, 40), AFTER_PASSES)
    assert torch.allclose(up(x, (24, 40)), expected, atol=1e-6)


def test_resampling_is_pillows_lanczos() -> None:
    image_module = pytest.importorskip("PIL.Image")
    x = latent(1, 1, 20, 30)
    for height, width in ((13, 19), (40, 30), (7, 50), (20, 30)):
        image = image_module.fromarray(x[0, 0].numpy())
        expected = image.resize((width, height), image_module.Resampling.LANCZOS)
        result = resample(x, (height, width))[0, 0]
        assert torch.allclose(result, torch.tensor(np.array(expected)), atol=1e-5)


def test_a_latent_too_small_to_grow_is_resampled() -> None:
    assert upscaler(1.25)(latent(1, 4, 3, 3), (9, 9)).shape == (1, 4, 9, 9)


def test_antialiasing_can_be_less_only_where_little_is_lost() -> None:
    x = latent(1, 1, 32, 32)
    full, half, none = (resample(x, (24, 24), antialias).var() for antialias in (1, 0.5, 0))
    assert full < half < none
    assert torch.equal(resample(x, (16, 8), 0.5), resample(x, (16, 8)))  # steps of 2 and more
    assert torch.equal(resample(x, (40, 48), 0.5), resample(x, (40, 48)))  # nothing becomes smaller


def test_one_side_up_and_one_down() -> None:
    up = upscaler(2.0)
    x = latent(1, 4, 16, 24)
    with torch.no_grad():
        expected = resample(up.network(x), (32, 12), AFTER_PASSES)
    assert torch.allclose(up(x, (32, 12)), expected, atol=1e-6)


def test_a_resizer_goes_to_the_target_at_once_and_by_steps_past_its_range() -> None:
    network = architectures.from_state_dict(published.state_dict("ttl"))
    up = LatentUpscaler(network, SD15, LatentScale(0.13025), "ttl")
    x = latent(1, 4, 8, 12)
    sizes = []
    network.register_forward_hook(lambda module, arguments, output: sizes.append(output.shape[2:]))
    assert up(x, (13, 20)).shape == (1, 4, 13, 20)
    assert sizes == [(13, 20)]
    sizes.clear()
    assert up(x, (20, 36)).shape == (1, 4, 20, 36)
    assert sizes == [(16, 24), (20, 36)]
    sizes.clear()
    assert up(x, (4, 24)).shape == (1, 4, 4, 24)  # never below the input's side inside
    assert sizes == [(8, 24)]


@pytest.mark.parametrize("input_scale", [RAW, SD15.unet, LatentScale(0.13025)])
def test_the_network_sees_its_own_scale(input_scale: LatentScale) -> None:
    up = upscaler(2.0, input_scale)
    seen = []
    up.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    x = latent(1, 4, 8, 8)
    result = up(x, (16, 16))
    factor = input_scale.factor / 0.18215
    assert torch.allclose(seen[0], x * factor, rtol=1e-5)
    with torch.no_grad():
        assert torch.allclose(result, up.network(x * factor) / factor, atol=1e-5)


def test_shifted_scales_round_trip() -> None:
    x = latent(1, 16, 4, 4)
    for space in SPACES.values():
        raw = space.unet.to(RAW, x)
        assert torch.allclose(raw, x / space.unet.factor + space.unet.shift, atol=1e-5)
        assert torch.allclose(RAW.to(space.unet, raw), x, atol=1e-5)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 8, 8), torch.zeros(1, 16, 8, 8), torch.zeros(1, 4, 8, 8).int()]
)
def test_bad_latents_are_refused(bundled: LatentUpscaler, bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"channels|N, C, H, W"):
        bundled(bad, (16, 16))


def test_bad_sizes_are_refused(bundled: LatentUpscaler) -> None:
    with pytest.raises(ValueError, match="nothing to upscale"):
        bundled(latent(1, 4, 8, 8), (0, 16))


def test_the_input_is_left_alone(bundled: LatentUpscaler) -> None:
    x = latent(1, 4, 16, 16)
    copy = x.clone()
    bundled(x, (32, 32))
    assert torch.equal(x, copy)


def test_works_under_the_hosts_contexts(bundled: LatentUpscaler) -> None:
    """A1111 runs jobs under no_grad and autocast, Forge under inference_mode."""
    x = latent(1, 4, 16, 16)
    expected = bundled(x, (32, 32))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = bundled(x.clone(), (32, 32))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert not expected.requires_grad
    expected.add_(1)  # an ordinary tensor, which the host may write to


def test_constants_made_in_inference_mode_work_outside() -> None:
    network = architectures.from_state_dict(published.small_state_dict("DAT6x6"))
    up = LatentUpscaler(network, SD15, RAW, "dat")
    x = latent(1, 4, 16, 16)
    with torch.inference_mode():
        inside = up(x, (32, 32))
    assert torch.allclose(up(x, (32, 32)), inside)


def test_stops_inside_the_network(bundled: LatentUpscaler) -> None:
    asked = []

    def stop_at_the_third() -> bool:
        asked.append(True)
        return len(asked) >= 3

    with pytest.raises(Interrupted):
        bundled(latent(1, 4, 16, 16), (32, 32), should_stop=stop_at_the_third)
    assert len(asked) == 3
    assert bundled(latent(1, 4, 16, 16), (32, 32)).shape == (1, 4, 32, 32)


def test_a_stop_is_the_callers_own(bundled: LatentUpscaler) -> None:
    """Another thread's interrupt does not stop this one's job on the same model."""
    inside, go_on = threading.Event(), threading.Event()
    outcome: list[object] = []

    def slow() -> bool:
        inside.set()
        go_on.wait(10)
        return True

    def other() -> None:
        try:
            outcome.append(bundled(latent(1, 4, 8, 8), (16, 16), should_stop=slow))
        except Interrupted as error:
            outcome.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    assert bundled(latent(1, 4, 8, 8), (16, 16)).shape == (1, 4, 16, 16)
    go_on.set()
    thread.join()
    assert isinstance(outcome[0], Interrupted)


def test_load_by_published_file_name(tmp_path: Path) -> None:
    path = tmp_path / "latent-upscaler-v2.1_SDxl-x1.25.safetensors"
    save_file(published.state_dict("city96_x1.25"), path)
    up = lib_latent_upscale.load(path)
    assert up.entry is CATALOG["city96-x1.25-sdxl"]
    assert (up.space, up.input_scale, up.network.scale) == (SDXL, RAW, 1.25)
    assert up(latent(1, 4, 16, 16), (20, 20)).shape == (1, 4, 20, 20)


def test_load_by_metadata(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    metadata = {"space": "sdxl", "input": "unet", "scale": "1.5"}
    save_file(published.state_dict("city96_x1.5"), path, metadata)
    up = lib_latent_upscale.load(path)
    assert (up.space, up.input_scale, up.network.scale) == (SDXL, SDXL.unet, 1.5)
    assert up.name == "mine.safetensors"
    assert up.entry is None


def test_load_asks_for_a_space_that_nothing_tells(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(published.small_state_dict("SwinFIR4x6"), path)
    with pytest.raises(WeightsError, match="sd15, sdxl, sd3, flux"):
        lib_latent_upscale.load(path)
    up = lib_latent_upscale.load(path, space="sdxl", dtype=torch.bfloat16)
    assert (up.space, up.input_scale, up.dtype) == (SDXL, RAW, torch.bfloat16)
    assert up(latent(1, 4, 8, 8), (16, 16)).dtype == torch.float32


def test_load_refuses_a_space_of_other_channels(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(published.small_state_dict("SwinFIR4x6"), path, {"space": "flux"})
    with pytest.raises(WeightsError, match="4 channels; those of FLUX have 16"):
        lib_latent_upscale.load(path)


def test_load_names_the_file_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "sd15_resizer.safetensors"
    weights = dict(published.state_dict("ttl"))
    del weights["conv_out.bias"]
    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"sd15_resizer.*'conv_out\.bias'"):
        lib_latent_upscale.load(path)


def test_load_of_an_unknown_id() -> None:
    with pytest.raises(WeightsError, match="bundled-sd15"):
        lib_latent_upscale.load("bundled-sd99")


@pytest.mark.skipif(
    not (published.SHARED / "reference").is_dir(), reason="the reference weights are not here"
)
def test_the_right_scale_is_worth_decibels() -> None:
    """city96's real weights on the demo's latents: they want raw ones, as their entry says."""
    file = published.SHARED / "reference/city96/latent-upscaler-v2.1_SDv1-x2.0.safetensors"
    right = lib_latent_upscale.load(file)
    wrong = LatentUpscaler(right.network, right.space, right.space.unet, "wrong scale")
    small = latent_files.read(ASSETS / "astronaut-256.safetensors", SD15)
    large = latent_files.read(ASSETS / "astronaut-512.safetensors", SD15)
    decoder = load_preview_decoder(SD15)
    with torch.no_grad():
        expected = decoder(large)
        errors = [
            (decoder(up(small, (64, 64))) - expected).square().mean() for up in (right, wrong)
        ]
    good, bad = (-10 * math.log10(float(error)) for error in errors)
    assert good > bad + 5
