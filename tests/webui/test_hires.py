"""The hires pass in the double: what the host gets, sees and is spared."""

from __future__ import annotations

import copy
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import lib_latent_upscale
from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.resample import resample

from ..misbehaving import MisbehavingServer
from .double import VARIANTS, Double, _Txt2Img
from .jobs import BUNDLED, CITY96, HIRES, NEURAL, bicubic, done, random_city96, runs
from .test_host import A_KEY

SMALL = (64, 64)


def inference_module() -> Any:
    """The module of the extension that runs now: a reload made it anew."""
    return sys.modules["lib_latent_upscale.inference"]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


def test_the_second_pass_begins_with_the_networks_latent(webui: Double) -> None:
    done(webui.txt2img({**HIRES, "batch_size": 2, "hr_scale": 1.5}))
    (latent,) = webui.hires_inputs
    up = lib_latent_upscale.load("bundled-sd15")
    assert type(latent) is Tensor
    assert close(latent, up(webui.noise([1, 2], 8, 8), (12, 12)))


def test_the_picture_before_hires_is_the_small_one(webui: Double) -> None:
    done(webui.txt2img({**HIRES, "batch_size": 2}))
    assert [type(latent) for latent in webui.before_hires] == [Tensor, Tensor]
    assert torch.equal(torch.stack(webui.before_hires), webui.noise([1, 2], 8, 8))


def test_a_callers_autocast_does_not_reach_the_network(webui: Double) -> None:
    webui.autocast = True
    done(webui.txt2img(HIRES))
    webui.autocast = False
    done(webui.txt2img(HIRES))
    first, second = webui.hires_inputs
    assert first.dtype == second.dtype == torch.float32
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_quick_upscale_button(webui: Double, dtype: torch.dtype) -> None:
    webui.dtype_vae = dtype
    picture = webui.noise([5], 8, 8)
    job = done(webui.txt2img({**HIRES, "firstpass_image": picture}))
    assert not job.first_pass and job.sizes == [(128, 128)]
    assert runs(job) == ["bundled-sd15"]
    (latent,) = webui.hires_inputs
    assert type(latent) is Tensor and latent.dtype == dtype


def test_interrupted_before_the_hires_pass(webui: Double) -> None:
    webui.after_first_pass = webui.interrupt
    # The double, like a host, decodes plain tensors only.
    job = done(webui.txt2img(HIRES))
    assert job.sizes == [SMALL] and not runs(job)
    webui.after_first_pass = lambda: None
    webui.shared.state.interrupted = False
    assert done(webui.txt2img(HIRES)).sizes == [(128, 128)]


@pytest.mark.parametrize("flag", ["interrupted", "skipped"])
@pytest.mark.parametrize("steps", [1, 4])
def test_interrupted_inside_the_network(webui: Double, flag: str, steps: int) -> None:
    texts = press(webui, flag, steps)
    job = done(webui.txt2img(HIRES))
    assert len(texts) == steps  # the next one did not begin
    assert job.sizes == [(128, 128)] and not runs(job)
    (latent,) = webui.hires_inputs
    assert type(latent) is Tensor
    assert torch.equal(latent, resample(webui.noise([1], 8, 8), (16, 16)))
    setattr(webui.shared.state, flag, False)
    assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]


def test_a_skip_is_for_one_picture(webui: Double) -> None:
    press(webui, "skipped", 2)
    job = done(webui.txt2img({**HIRES, "n_iter": 2}))
    assert job.sizes == [(128, 128)] * 2
    assert runs(job) == ["bundled-sd15"]
    second = webui.noise([2], 8, 8)
    expected = lib_latent_upscale.load("bundled-sd15")(second, (16, 16))
    assert close(webui.hires_inputs[1], expected)


def test_a_skip_of_the_job_before_stops_no_download(
    a1111: Double, server: MisbehavingServer
) -> None:
    # As in X/Y/Z, where nothing takes it back between two jobs.
    a1111.shared.opts.data["latent_upscale_mirror"] = server.base
    a1111.shared.state.skipped = True
    job = a1111.txt2img({**HIRES, "hr_upscaler": CITY96.label})
    assert job.error is not None and "could not be fetched" in job.error and server.asked


def test_progress_is_told_while_the_network_runs(webui: Double) -> None:
    state = webui.shared.state
    state.textinfo = "before"
    texts = press(webui, "interrupted", 10**6)
    done(webui.txt2img({**HIRES, "hr_scale": 4}))
    found = [re.fullmatch(r"Latent upscale: neural SD1.5 \((\d+)%\)", text) for text in texts]
    percent = [int(match[1]) for match in found if match]
    assert len(percent) == len(texts) > 10
    assert percent == sorted(percent) and percent[0] == 0 and percent[-1] > 80
    assert webui.shared.state.textinfo == "before"


def press(webui: Double, flag: str, steps: int) -> list[str]:
    """Presses a button at that step of the network; returns a list that gets the progress."""
    texts: list[str] = []

    class State(SimpleNamespace):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "textinfo" and str(value).startswith("Latent upscale: "):
                texts.append(value)
                if len(texts) == steps:
                    super().__setattr__(flag, True)

    webui.shared.state = State(**vars(webui.shared.state))
    return texts


def test_an_error_in_the_network_ends_that_job_only(
    webui: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(inference_module().LatentUpscaler, "__call__", fail)
        assert webui.txt2img(HIRES).error == "a defect"
    assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]


def test_previews_in_another_thread_are_untouched(a1111: Double) -> None:
    original, other = F.interpolate, torch.randn(1, 3, 8, 8)
    wanted = original(other, size=(16, 16), mode="bicubic")
    stop, seen = threading.Event(), set()

    def preview() -> None:
        while not stop.is_set():
            result = torch.nn.functional.interpolate(other, size=(16, 16), mode="bicubic")
            seen.add((F.interpolate is original, type(result), torch.equal(result, wanted)))

    thread = threading.Thread(target=preview)
    thread.start()
    try:
        for _ in range(5):
            assert runs(done(a1111.txt2img(HIRES))) == ["bundled-sd15"]
    finally:
        stop.set()
        thread.join()
    assert seen == {(True, Tensor, True)}
    assert F.interpolate is original


def test_who_never_meets_the_hook_gets_bicubic(webui: Double) -> None:
    for label in [NEURAL, *(entry.label for entry in CATALOG.values())]:
        mode = webui.shared.latent_upscale_modes[label]
        assert (mode["mode"], mode["antialias"]) == ("bicubic", True)
    job = webui.job_class(**HIRES)
    job.init([], [], [])
    # An extension with a hires pass of its own, which the host's methods do not call.
    _Txt2Img.sample_hr_pass(job, webui.noise([1], 8, 8), None, [1], None, 0, [""])
    assert torch.equal(webui.hires_inputs[0], bicubic(webui.noise([1], 8, 8), (16, 16)))


# Loading


def test_a_model_is_loaded_once(webui: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    cache: Any = sys.modules["lib_latent_upscale.cache"]
    load, loaded = cache.load, []

    def counting(path: Path) -> Any:
        loaded.append(path.name)
        return load(path)

    monkeypatch.setattr(cache, "load", counting)
    done(webui.txt2img(HIRES))
    done(webui.txt2img({**HIRES, "hr_upscaler": BUNDLED.label, "n_iter": 2}))
    assert loaded == [BUNDLED.file.name]


def test_another_file_under_the_same_name_is_loaded_anew(a1111: Double, models: Path) -> None:
    texts = []
    for seed in (0, 1):
        random_city96(models, seed)
        job = done(a1111.txt2img({**HIRES, "hr_upscaler": CITY96.label}))
        texts += job.infotexts
    first, second = a1111.hires_inputs
    assert not torch.equal(first, second)
    assert texts[0] != texts[1]  # the hash


def test_no_inference_tensors_are_kept(webui: Double) -> None:
    done(webui.txt2img(HIRES))
    (model,) = sys.modules["lib_latent_upscale.webui.models"].cache._models.values()
    assert not any(parameter.is_inference() for parameter in model.upscaler.network.parameters())


# X/Y/Z: the script makes one job and runs copies of it.


def test_copies_of_a_job_run_by_themselves(webui: Double, models: Path) -> None:
    random_city96(models)
    job, found = webui.job_class(**HIRES), []
    for label in (NEURAL, "Latent", CITY96.label, "Lanczos", BUNDLED.label):
        one = copy.copy(job)
        one.hr_upscaler = label
        found.append(runs(done(webui.run(one))))
    assert found == [["bundled-sd15"], [], [CITY96.id], [], ["bundled-sd15"]]


def test_a_job_run_again_with_another_upscaler(webui: Double) -> None:
    # Other scripts run the very job again.
    job = webui.job_class(**HIRES)
    assert runs(done(webui.run(job))) == ["bundled-sd15"]
    job.hr_upscaler = "Latent"
    assert not runs(done(webui.run(job)))


def test_a_copy_that_cannot_work_does_not_use_the_last_ones_model(webui: Double) -> None:
    job = webui.job_class(**HIRES)
    done(webui.run(job))
    one = copy.copy(job)
    one.hr_upscaler = CATALOG["city96-x2-sdxl"].label
    result = webui.run(one)
    assert result.error is not None and not result.first_pass and not runs(result)


@pytest.mark.parametrize("label", ["Latent", BUNDLED.label])
def test_copies_do_not_inherit_infotext(webui: Double, label: str) -> None:
    # copy.copy does not copy the dict of parameters, in the hosts as here.
    job = webui.job_class(**HIRES)
    done(webui.run(job))
    one = copy.copy(job)
    one.hr_upscaler = label
    (text,) = done(webui.run(one)).infotexts
    assert "Latent neural SD15" not in text
    assert ("Latent upscaler hash" in text) == (label == BUNDLED.label)


# Checkpoints that do not fit


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label", [NEURAL, BUNDLED.label])
def test_a_latent_of_no_known_kind_is_refused(variant: str, label: str) -> None:
    with Double(variant=variant, checkpoint="unknown") as webui:
        job = webui.txt2img({**HIRES, "hr_upscaler": label})
        assert job.error is not None and label in job.error and "checkpoint" in job.error
        assert not job.first_pass
        assert done(webui.txt2img({**HIRES, "hr_upscaler": "Latent"})).sizes == [(128, 128)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("space", ["sd3", "flux"])
def test_sixteen_channels_have_networks_of_their_own(variant: str, space: str) -> None:
    with Double(variant=variant, checkpoint=space) as webui:
        assert runs(done(webui.txt2img(HIRES))) == [f"bundled-{space}"]
        job = webui.txt2img({**HIRES, "hr_upscaler": BUNDLED.label})
        assert job.error is not None and space.upper() in job.error
        assert CATALOG[f"bundled-{space}"].label in job.error
        assert not job.first_pass


def checkpoint_file(folder: Path, space: str) -> Path:
    path = folder / f"{space}.safetensors"
    save_file({A_KEY[space]: torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize("space", ["sdxl", "sd3", "flux"])
def test_a_hires_checkpoint_of_another_space_is_refused(
    webui: Double, tmp_path: Path, space: str
) -> None:
    webui.checkpoint_files[space] = checkpoint_file(tmp_path, space)
    job = webui.txt2img({**HIRES, "hr_checkpoint_name": space})
    assert job.error is not None and "hires checkpoint" in job.error
    assert "SD1.5" in job.error and space.upper() in job.error
    assert not job.first_pass


def test_a_hires_checkpoint_of_the_same_space_works(webui: Double, tmp_path: Path) -> None:
    webui.checkpoint_files["sd15"] = checkpoint_file(tmp_path, "sd15")
    job = done(webui.txt2img({**HIRES, "hr_checkpoint_name": "sd15"}))
    assert runs(job) == ["bundled-sd15"]


def test_a_hires_checkpoint_whose_file_does_not_tell_is_refused_once_loaded(webui: Double) -> None:
    job = webui.txt2img({**HIRES, "hr_checkpoint_name": "sdxl"})
    assert job.error is not None and "hires checkpoint" in job.error
    assert not runs(job) and not webui.hires_inputs
    assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_may_stand_in_for_a_model_that_does_not_fit(variant: str) -> None:
    wrong = CATALOG["city96-x2-sdxl"]
    payload = {**HIRES, "hr_upscaler": wrong.label}
    settings = {"latent_upscale_misfit": "default"}
    with Double(variant=variant) as webui:
        assert webui.txt2img(payload).error is not None
        job = done(webui.txt2img({**payload, "override_settings": settings}))
        assert runs(job) == ["bundled-sd15"]
        assert wrong.label in job.log and BUNDLED.label in job.log
        (text,) = job.infotexts
        assert f"Hires upscaler: {wrong.label}" in text
        assert f"Latent neural SD15: {BUNDLED.label}" in text
        assert "Latent upscaler misfit: default" in text
        pasted = {"seed": 1, "width": 64, "height": 64, "infotext": text}
        again = done(webui.txt2img(pasted))
        assert again.pictures == job.pictures
        assert "Latent upscaler misfit: default" in again.infotexts[0]
        # Where a model fits, the setting changes nothing and nothing is told of it.
        fits = done(webui.txt2img({**HIRES, "override_settings": settings}))
        assert "misfit" not in fits.infotexts[0] and fits.pictures == job.pictures


def test_a_model_of_ones_own_can_be_the_default_of_its_space(models: Path) -> None:
    torch.manual_seed(0)
    weights = City96(channels=16, dim=8, depth=1, scale=2.0).state_dict()
    save_file(weights, models / "mine.safetensors", {"space": "flux", "scale": "2.0"})
    with Double(checkpoint="flux") as webui:
        key = "latent_upscale_default_flux"
        choices = webui.shared.opts.data_labels[key].component_args()["choices"]
        assert choices == ["automatic", CATALOG["bundled-flux"].label, "Latent (mine)"]
        job = done(webui.txt2img({**HIRES, "override_settings": {key: "Latent (mine)"}}))
        assert runs(job) == ["mine.safetensors"]
        assert "Latent neural FLUX: Latent (mine)" in job.infotexts[0]


# Precision and what stays on the device


def test_the_precision_of_the_settings_is_used_and_told(webui: Double) -> None:
    exact = done(webui.txt2img(HIRES))
    settings = {"latent_upscale_precision": "bfloat16"}
    half = done(webui.txt2img({**HIRES, "override_settings": settings}))
    assert exact.pictures != half.pictures
    assert "Latent upscaler precision" not in exact.infotexts[0]
    assert "Latent upscaler precision: bfloat16" in half.infotexts[0]
    pasted = done(
        webui.txt2img({"seed": 1, "width": 64, "height": 64, "infotext": half.infotexts[0]})
    )
    assert pasted.pictures == half.pictures
    assert done(webui.txt2img(HIRES)).pictures == exact.pictures


@pytest.mark.parametrize(("policy", "kept"), [("keep", 1), ("offload", 0)])
def test_what_stays_after_a_job(a1111: Double, policy: str, kept: int) -> None:
    settings = {"latent_upscale_precision": "bfloat16", "latent_upscale_cache_policy": policy}
    done(a1111.txt2img({**HIRES, "override_settings": settings}))
    cache = sys.modules["lib_latent_upscale.webui.models"].cache
    (model,) = cache._models.values()
    assert len(model.copies) == kept
    assert cache.statistics().loads == 1


def test_one_line_tells_what_was_done(webui: Double) -> None:
    settings = {"latent_upscale_precision": "bfloat16"}
    job = done(webui.txt2img({**HIRES, "width": 96, "override_settings": settings}))
    line = r"Latent upscale: bundled-sd15, 12x8 to 24x16 in \d+\.\d\d s on cpu in bfloat16\n"
    assert re.findall(line, job.log) and job.log.count("Latent upscale: ") == 1


def test_the_line_tells_what_it_came_to(a1111: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    network = type(lib_latent_upscale.load("bundled-sd15").network)
    forward = network.forward

    def overflow(self: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        return forward(self, x, size) / (0 if x.dtype == torch.float16 else 1)

    settings = {"latent_upscale_precision": "float16"}
    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", overflow)
        job = done(a1111.txt2img({**HIRES, "override_settings": settings}))
    assert "runs in float32 from now on" in job.log and "s on cpu in float32" in job.log


def test_the_limit_of_the_settings_is_the_engines(
    a1111: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: Any = sys.modules["lib_latent_upscale.architectures.layers.chunks"]
    seen = []

    def see(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(chunks.limit() >> 20)
        return resample(args[0], args[1])

    monkeypatch.setattr(inference_module().LatentUpscaler, "__call__", see)
    for limit in (0, 16):
        settings = {"latent_upscale_chunk_limit": limit}
        done(a1111.txt2img({**HIRES, "override_settings": settings}))
    assert seen == [256, 16]
