"""img2img's "Just resize (latent upscale)" in the double."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lib_latent_upscale
from lib_latent_upscale.catalog import CATALOG

from .double import Double
from .jobs import BUNDLED, NEURAL, done, runs
from .test_hires import press

LATENT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
JOB: dict[str, Any] = dict(prompt="a cat", init_images=[LATENT], width=128, height=96)
JOB |= dict(resize_mode=3, denoising_strength=0.0)


def with_network(label: str, **change: Any) -> dict[str, Any]:
    return {**JOB, "override_settings": {"latent_upscale_img2img": label}, **change}


def plain(latent: Tensor) -> bytes:
    return latent[0].mean(0).numpy().tobytes()


@pytest.mark.parametrize("label", [NEURAL, BUNDLED.label])
def test_the_network_resizes(webui: Double, label: str) -> None:
    job = done(webui.img2img(with_network(label)))
    assert runs(job) == ["bundled-sd15"]
    assert job.sizes == [(128, 96)]
    expected = lib_latent_upscale.load("bundled-sd15")(LATENT, (12, 16))
    assert job.pictures == [plain(expected)]
    assert f"Latent resize: {label}" in job.infotexts[0]
    assert "Latent upscaler hash" in job.infotexts[0]
    assert ("Latent neural SD15" in job.infotexts[0]) is (label == NEURAL)
    assert type(webui.previewed) is Tensor


def test_without_the_setting_it_is_the_hosts_own(webui: Double) -> None:
    job = done(webui.img2img(JOB))
    assert not runs(job)
    assert job.pictures == [plain(F.interpolate(LATENT, size=(12, 16), mode="bilinear"))]
    assert "Latent" not in job.infotexts[0].replace("Latent upscale", "")


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_other_ways_to_resize_are_left_alone(a1111: Double, mode: int) -> None:
    job = done(a1111.img2img(with_network(NEURAL, resize_mode=mode)))
    assert not runs(job) and job.pictures == [plain(LATENT)]
    assert "Latent resize" not in job.infotexts[0]


def test_the_job_is_what_it_was_afterwards(a1111: Double) -> None:
    p = a1111.img2img_class(**with_network(NEURAL))
    done(a1111.run(p))
    assert type(p) is a1111.img2img_class
    assert type(p.init_latent) is Tensor


def test_a_model_that_does_not_fit_is_refused(a1111: Double) -> None:
    wrong = CATALOG["city96-x2-sdxl"].label
    job = a1111.img2img(with_network(wrong))
    assert job.error is not None and wrong in job.error and BUNDLED.label in job.error
    assert runs(done(a1111.img2img(with_network(NEURAL)))) == ["bundled-sd15"]


def test_a_skip_while_the_network_runs_is_for_that_picture(webui: Double) -> None:
    # The hosts forget a Skip where a picture begins, and this one's latent is made before.
    press(webui, "skipped", 2)
    job = done(webui.img2img(with_network(NEURAL)))
    assert not runs(job) and job.sizes == [(128, 96)]
    assert webui.shared.state.skipped  # as the sampler sees it
    # It is not for the next one.
    assert runs(done(webui.img2img(with_network(NEURAL)))) == ["bundled-sd15"]
    assert not webui.shared.state.skipped


def test_an_interrupt_while_the_network_runs_ends_the_job(webui: Double) -> None:
    press(webui, "interrupted", 2)
    job = done(webui.img2img(with_network(NEURAL)))
    assert not runs(job) and not job.sizes


def test_unloading_undoes_it(a1111: Double) -> None:
    method = a1111.img2img_class.init.__wrapped__  # type: ignore[attr-defined]
    a1111.unload_extension()
    assert a1111.img2img_class.init is method
