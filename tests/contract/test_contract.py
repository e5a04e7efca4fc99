"""What users and API clients of a WebUI get from this extension, in every host alike.

The tests share one host and run in order: the last ones see what the others left behind.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.catalog import CATALOG, Entry
from lib_latent_upscale.spaces import LatentSpace
from lib_latent_upscale.weights import files
from lib_latent_upscale.weights.errors import MissingWeightsError

from .. import published
from ..misbehaving import Manner
from ..webui.double import Job
from .conftest import Host

NEURAL = "Latent (neural)"
BUNDLED = CATALOG["bundled-sd15"]
CITY96 = CATALOG["city96-x2-sd15"]
SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]

JOB: dict[str, Any] = dict(prompt="a cat", seed=1, steps=2, width=64, height=64, cfg_scale=2)
JOB |= dict(sampler_name="Euler", scheduler="Automatic", denoising_strength=0.7)
HIRES = {**JOB, "enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 2}


def done(job: Job) -> Job:
    assert job.error is None
    return job


def upscales(job: Job) -> list[tuple[str, str, str]]:
    """(model, size, larger size) of every time that the network ran in the job."""
    return re.findall(r"Latent upscale: (.+?), (\d+x\d+) to (\d+x\d+) in [\d.]+ s on ", job.log)


def missing(host: Host, space: str) -> Entry:
    """A published model whose file is not here and cannot be fetched."""
    for entry in CATALOG.values():
        if entry.space.id == space and entry.file.url and entry is not SWINFIR:
            try:
                files.find(entry, [host.models, files.MODEL_FOLDER])
            except MissingWeightsError:
                return entry
    pytest.skip("all published models are here")


@pytest.fixture(scope="module")
def swinfir(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A pickle with the published model's keys and shapes."""
    path = tmp_path_factory.mktemp("swinfir") / SWINFIR.file.name
    torch.save(published.state_dict("SwinFIR4x6"), path)
    return path.read_bytes()


@contextmanager
def nothing_fetched(host: Host) -> Iterator[Path]:
    """The file that SwinFIR is kept in, which is not there."""
    if any((files.MODEL_FOLDER / name).exists() for name in SWINFIR.file.local_names):
        pytest.skip(f"{SWINFIR.file.name} is in {files.MODEL_FOLDER}")
    path = host.models / SWINFIR.file.kept_name
    for leftover in (path, host.models / "hashes.json"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(host.models / ".fetching", ignore_errors=True)
    yield path


class Running:
    """A job in a thread, so that the test can look at the WebUI meanwhile."""

    def __init__(self, host: Host, payload: dict[str, Any]) -> None:
        self._job: Job | None = None
        self._thread = threading.Thread(target=self._run, args=(host, payload))
        self._thread.start()

    def _run(self, host: Host, payload: dict[str, Any]) -> None:
        self._job = host.txt2img(payload)

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._thread.is_alive() and time.monotonic() < deadline, self._job
            time.sleep(0.05)

    def end(self, seconds: float) -> Job:
        self._thread.join(seconds)
        assert self._job is not None, f"the job did not end within {seconds} s"
        return self._job


def random_city96(path: Path) -> None:
    torch.manual_seed(0)
    network = City96(channels=4, dim=8, depth=1, scale=2.0)
    save_file(network.state_dict(), path)


@contextmanager
def city96_file(host: Host) -> Iterator[Path]:
    """A file of random weights under the published name, where the extension looks first."""
    path = host.models / CITY96.file.name
    random_city96(path)
    try:
        yield path
    finally:
        path.unlink()


def short_hash(path: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:10]]


def hashes(text: str) -> list[str]:
    """The hashes of upscalers that an infotext names."""
    return re.findall(r"Latent upscaler hash: ([^,\n]*)", text)


def test_every_label_is_offered_once_and_in_order(host: Host) -> None:
    names = host.latent_upscale_modes()
    ours = [NEURAL, *(entry.label for entry in CATALOG.values())]
    assert [name for name in names if name in ours] == ours
    assert "Latent" in names and "Latent (nearest)" in names


@pytest.mark.parametrize("label", [NEURAL, BUNDLED.label])
def test_the_network_upscales_the_latent(host: Host, label: str) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": label}))
    assert job.sizes == [(128, 128)]
    assert job.first_pass
    assert upscales(job) == [("bundled-sd15", "8x8", "16x16")]


@pytest.mark.parametrize(
    ("change", "size", "larger"),
    [
        ({"hr_scale": 1.5}, (96, 96), "12x12"),
        ({"hr_scale": 2.5}, (160, 160), "20x20"),
        # To another aspect ratio: the picture is covered, and the host cuts off the rest.
        ({"hr_resize_x": 136, "hr_resize_y": 200}, (136, 200), "25x25"),
        ({"hr_resize_x": 160}, (160, 160), "20x20"),
    ],
)
def test_any_size(host: Host, change: dict[str, Any], size: tuple[int, int], larger: str) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL, **change}))
    assert job.sizes == [size]
    assert upscales(job) == [("bundled-sd15", "8x8", larger)]


def test_wide_pictures_stay_wide(host: Host) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL, "width": 96}))
    assert job.sizes == [(192, 128)]
    assert upscales(job) == [("bundled-sd15", "12x8", "24x16")]


def test_a_batch_is_one_run_of_the_network(host: Host) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL, "batch_size": 2}))
    assert job.sizes == [(128, 128)] * 2
    assert len(upscales(job)) == 1
    assert len(set(job.pictures)) == 2


def test_every_batch_of_a_count_is_upscaled(host: Host) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL, "n_iter": 2}))
    assert job.sizes == [(128, 128)] * 2
    assert len(upscales(job)) == 2
    assert all(f"Hires upscaler: {NEURAL}" in text for text in job.infotexts)


def test_the_same_seed_gives_the_same_picture(host: Host) -> None:
    first, second = (done(host.txt2img({**HIRES, "hr_upscaler": NEURAL})) for _ in range(2))
    plain = done(host.txt2img({**HIRES, "hr_upscaler": "Latent"}))
    assert first.pictures == second.pictures
    assert first.pictures != plain.pictures


XYZ = [NEURAL, "Latent", BUNDLED.label]


def test_xyz_runs_every_upscaler(host: Host) -> None:
    job = done(host.xyz(HIRES, "Hires upscaler", XYZ))
    assert job.sizes == [(384, 128)] + [(128, 128)] * 3
    assert upscales(job) == [("bundled-sd15", "8x8", "16x16")] * 2
    assert job.pictures[1] == job.pictures[3] != job.pictures[2]
    for text, label in zip(job.infotexts[1:], XYZ):
        assert re.findall(r"Hires upscaler: ([^,\n]*)", text) == [label]


def test_xyz_names_only_what_made_each_picture(host: Host) -> None:
    job = done(host.xyz(HIRES, "Hires upscaler", XYZ))
    found = [("Latent neural SD15" in text, bool(hashes(text))) for text in job.infotexts[1:]]
    assert found == [(True, True), (False, False), (False, True)]


def test_xyz_has_an_axis_for_the_precision(host: Host) -> None:
    values = ["bfloat16", "automatic", "float32"]
    payload = {**HIRES, "hr_upscaler": NEURAL}
    job = done(host.xyz(payload, "[Latent upscale] precision", values))
    assert job.sizes == [(384, 128)] + [(128, 128)] * 3
    told = [re.findall(r"Latent upscaler precision: (\w+)", text) for text in job.infotexts[1:]]
    assert told == [["bfloat16"], [], ["float32"]]
    assert re.findall(r"Latent upscale: bundled-sd15, .* in (\w+)", job.log)[0] == "bfloat16"
    assert job.pictures[1] != job.pictures[3]
    after = done(host.txt2img(payload))
    assert "Latent upscaler precision" not in after.infotexts[0]


def test_infotext_of_a_model(host: Host) -> None:
    (text,) = done(host.txt2img({**HIRES, "hr_upscaler": BUNDLED.label})).infotexts
    assert f"Hires upscaler: {BUNDLED.label}" in text
    assert hashes(text) == short_hash(files.find(BUNDLED))
    assert "Latent neural" not in text


def test_infotext_of_the_default(host: Host) -> None:
    (text,) = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL})).infotexts
    assert f"Hires upscaler: {NEURAL}" in text
    assert f"Latent neural SD15: {BUNDLED.label}" in text
    assert hashes(text) == short_hash(files.find(BUNDLED))


def test_a_setting_chooses_the_default_for_a_job(host: Host) -> None:
    settings = {"latent_upscale_default_sd15": CITY96.label}
    payload = {**HIRES, "hr_upscaler": NEURAL, "override_settings": settings}
    with city96_file(host) as path:
        job = done(host.txt2img(payload))
        assert upscales(job) == [(CITY96.id, "8x8", "16x16")]
        assert f"Latent neural SD15: {CITY96.label}" in job.infotexts[0]
        assert hashes(job.infotexts[0]) == short_hash(path)
    after = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL}))
    assert upscales(after) == [("bundled-sd15", "8x8", "16x16")]


def test_pasted_infotext_restores_the_choice(host: Host) -> None:
    settings = {"latent_upscale_default_sd15": CITY96.label}
    payload = {**HIRES, "hr_upscaler": NEURAL, "override_settings": settings}
    with city96_file(host):
        job = done(host.txt2img(payload))
        pasted = done(host.txt2img({**JOB, **SAME, "infotext": job.infotexts[0]}))
    assert upscales(pasted) == upscales(job) == [(CITY96.id, "8x8", "16x16")]
    assert f"Latent neural SD15: {CITY96.label}" in pasted.infotexts[0]


def test_a_file_put_there_works_without_a_restart(host: Host) -> None:
    payload = {**HIRES, "hr_upscaler": CITY96.label}
    with city96_file(host):
        job = done(host.txt2img(payload))
    assert upscales(job) == [(CITY96.id, "8x8", "16x16")]


def test_a_missing_file_is_told_before_the_first_pass(host: Host) -> None:
    entry = missing(host, "sd15")
    job = host.txt2img({**HIRES, "hr_upscaler": entry.label})
    assert job.error is not None
    assert entry.id in job.error
    assert str(entry.file.url) in job.error
    assert str(host.models) in job.error
    assert entry.file.name in job.error
    assert not job.first_pass


def test_img2img_resizes_the_latent_by_the_network_of_the_settings(host: Host) -> None:
    payload = {**JOB, "width": 128, "height": 96, "resize_mode": 3}
    own = done(host.img2img(payload))
    assert own.sizes == [(128, 96)] and not upscales(own)
    settings = {"latent_upscale_img2img": NEURAL}
    job = done(host.img2img({**payload, "override_settings": settings}))
    assert upscales(job) == [("bundled-sd15", "8x8", "16x12")]
    assert job.sizes == [(128, 96)] and job.pictures != own.pictures
    assert f"Latent resize: {NEURAL}" in job.infotexts[0]
    assert hashes(job.infotexts[0]) == short_hash(files.find(BUNDLED))
    assert done(host.img2img(payload)).pictures == own.pictures


# Fields that the API, if they are not given, reads from any infotext and fails at: "Use same
# sampler" is none in A1111, and Forge stumbles over the type of styles.
SAME: dict[str, Any] = {"hr_sampler_name": "Euler", "hr_scheduler": "Automatic", "styles": []}


def test_what_shapes_the_picture_comes_back_when_its_infotext_is_pasted(host: Host) -> None:
    wrong = CATALOG["city96-x2-sdxl"]
    settings = {"latent_upscale_misfit": "default", "latent_upscale_precision": "bfloat16"}
    payload = {**HIRES, "hr_upscaler": wrong.label}
    job = done(host.txt2img({**payload, "override_settings": settings}))
    assert upscales(job) == [("bundled-sd15", "8x8", "16x16")]
    (text,) = job.infotexts
    for told in (
        f"Hires upscaler: {wrong.label}",
        f"Latent neural SD15: {BUNDLED.label}",
        "Latent upscaler misfit: default",
        "Latent upscaler precision: bfloat16",
    ):
        assert told in text
    assert hashes(text) == short_hash(files.find(BUNDLED))
    pasted = done(host.txt2img({**JOB, **SAME, "infotext": text}))
    assert pasted.pictures == job.pictures
    after = host.txt2img(payload)
    assert after.error is not None and wrong.label in after.error


def test_what_a_model_takes_changes_no_picture(host: Host) -> None:
    whole = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL}))
    settings = {"latent_upscale_chunk_limit": 1, "latent_upscale_gpu_budget": 16}
    payload = {**HIRES, "hr_upscaler": NEURAL, "override_settings": settings}
    assert done(host.txt2img(payload)).pictures == whole.pictures


def test_a_model_that_is_not_shown_works_by_its_name(host: Host) -> None:
    payload = {**HIRES, "hr_upscaler": BUNDLED.label}
    payload["override_settings"] = {"latent_upscale_shown": [CITY96.label]}
    assert upscales(done(host.txt2img(payload))) == [("bundled-sd15", "8x8", "16x16")]
    assert BUNDLED.label in host.latent_upscale_modes()


def test_a_request_cannot_change_where_files_come_from(host: Host) -> None:
    entry = missing(host, "sd15")
    settings = {
        "latent_upscale_fetch_on_use": False,
        "latent_upscale_model_folder": str(host.models / "elsewhere"),
        "latent_upscale_mirror": "http://127.0.0.1:9/{file}",
    }
    payload = {**HIRES, "hr_upscaler": entry.label, "override_settings": settings}
    asked = len(host.mirror.asked)
    job = host.txt2img(payload)
    assert job.error is not None and "could not be fetched" in job.error
    assert "elsewhere" not in job.error and len(host.mirror.asked) > asked


@pytest.mark.parametrize("button", ["interrupt", "skip"])
def test_a_running_network_shows_and_stops_within_a_second(host: Host, button: str) -> None:
    path = host.models / "slow-sd15.safetensors"
    torch.manual_seed(0)
    network = City96(channels=4, dim=128, depth=128, scale=2.0)
    save_file(network.state_dict(), path, {"scale": "2.0"})
    # A second pass of the network, for little: slow for the network, quick for the host.
    payload = {**HIRES, "width": 128, "height": 128, "hr_scale": 2.25}
    payload["hr_upscaler"] = "Latent (slow-sd15)"
    try:
        job = Running(host, payload)
        job.until(lambda: network_runs(host), seconds=120)
        pressed = time.monotonic()
        getattr(host, button)()
        job.until(lambda: not network_runs(host))
        assert time.monotonic() - pressed < 1
        stopped = done(job.end(seconds=120))
    finally:
        path.unlink()
    assert not upscales(stopped)
    assert upscales(done(host.txt2img({**HIRES, "hr_upscaler": NEURAL})))


def network_runs(host: Host) -> bool:
    return bool(re.fullmatch(r"Latent upscale: slow-sd15 \(\d+%\)", host.progress()[1] or ""))


def test_half_precision_by_a_setting(host: Host) -> None:
    exact = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL}))
    settings = {"latent_upscale_precision": "bfloat16"}
    for policy in ("keep", "keep", "offload", "unload", "keep"):
        settings["latent_upscale_cache_policy"] = policy
        payload = {**HIRES, "hr_upscaler": NEURAL, "override_settings": settings}
        half = done(host.txt2img(payload))
        assert upscales(half) == upscales(exact) == [("bundled-sd15", "8x8", "16x16")]
        assert "Latent upscaler precision: bfloat16" in half.infotexts[0]
        assert half.pictures != exact.pictures
    assert "Latent upscaler precision" not in exact.infotexts[0]
    assert done(host.txt2img({**HIRES, "hr_upscaler": NEURAL})).pictures == exact.pictures


def test_a_model_is_fetched_on_its_first_use_only(host: Host, swinfir: bytes) -> None:
    host.mirror.serve(f"/{SWINFIR.file.name}", swinfir)
    asked = len(host.mirror.asked)
    with nothing_fetched(host) as path:
        for _ in range(2):
            job = done(host.txt2img({**HIRES, "hr_upscaler": SWINFIR.label}))
            assert upscales(job) == [(SWINFIR.id, "8x8", "16x16")]
            assert hashes(job.infotexts[0]) == short_hash(path)
        assert len(host.mirror.asked) == asked + 1
        assert sorted(one.name for one in host.models.glob("SwinFIR*")) == [path.name]


def test_a_download_shows_in_the_progress_bar_and_can_be_interrupted(
    host: Host, swinfir: bytes
) -> None:
    half = len(swinfir) // 2
    host.mirror.serve(f"/{SWINFIR.file.name}", swinfir, Manner(stall=half), Manner())
    payload = {**HIRES, "hr_upscaler": SWINFIR.label}
    with nothing_fetched(host) as path:
        job = Running(host, payload)
        job.until(lambda: 0.4 < host.progress()[0] < 0.6)
        assert f"fetching {SWINFIR.id}" in str(host.progress()[1])
        host.interrupt()
        stopped = job.end(seconds=5)
        assert stopped.error is not None and "stopped" in stopped.error
        assert not stopped.first_pass and not path.exists()
        # What had arrived is not fetched again.
        done(host.txt2img(payload))
        first, second = host.mirror.asked[-2:]
        assert "range" not in first.headers and "range" in second.headers
        assert path.exists()


def test_a_wrong_file_from_the_web_is_told_and_not_kept(host: Host, swinfir: bytes) -> None:
    cut = swinfir[: len(swinfir) // 2] + bytes(len(swinfir) - len(swinfir) // 2)
    host.mirror.serve(f"/{SWINFIR.file.name}", cut)
    with nothing_fetched(host) as path:
        job = host.txt2img({**HIRES, "hr_upscaler": SWINFIR.label})
        assert job.error is not None and "damaged" in job.error and SWINFIR.id in job.error
        assert not job.first_pass and not path.exists()


def test_a_hand_placed_file_can_be_named_without_a_restart(host: Host) -> None:
    path = host.models / "my own-sd15.safetensors"
    label = "Latent (my own-sd15)"
    torch.manual_seed(0)
    network = Compact(channels=4, dim=8, depth=1, scale=2)
    save_file(network.to_state_dict(), path)
    try:
        job = done(host.txt2img({**HIRES, "hr_upscaler": label}))
        assert upscales(job) == [(path.name, "8x8", "16x16")]
        assert f"Hires upscaler: {label}" in job.infotexts[0]
        assert label in host.latent_upscale_modes()
    finally:
        path.unlink()
    # The next new name makes the list anew, and the file is no longer there.
    error = host.txt2img({**HIRES, "hr_upscaler": "Latent (another)"}).error
    assert error is not None and "could not find upscaler" in error
    assert label not in host.latent_upscale_modes()


def test_a_damaged_file_is_told_before_the_first_pass(host: Host) -> None:
    with city96_file(host) as path:
        path.write_bytes(path.read_bytes()[:2000])
        job = host.txt2img({**HIRES, "hr_upscaler": CITY96.label})
    assert job.error is not None and str(path) in job.error
    assert not job.first_pass


def fitting(space: LatentSpace) -> list[str]:
    return [entry.label for entry in CATALOG.values() if entry.space is space]


def test_a_model_of_another_latent_space_is_refused_before_the_first_pass(host: Host) -> None:
    wrong = CATALOG["city96-x2-sdxl"]
    job = host.txt2img({**HIRES, "hr_upscaler": wrong.label})
    assert job.error is not None
    assert wrong.label in job.error and "SDXL" in job.error
    assert all(label in job.error for label in fitting(BUNDLED.space))
    assert not job.first_pass
    assert not upscales(job)


def test_so_is_it_on_the_other_checkpoint(host: Host) -> None:
    job = host.txt2img({**HIRES, "hr_upscaler": BUNDLED.label}, checkpoint="sdxl")
    assert job.error is not None
    assert all(label in job.error for label in fitting(CATALOG["city96-x2-sdxl"].space))
    assert not job.first_pass


def test_a_hires_checkpoint_of_another_space_is_refused_before_the_first_pass(host: Host) -> None:
    other = host.checkpoint("sdxl")
    job = host.txt2img({**HIRES, "hr_upscaler": NEURAL, "hr_checkpoint_name": other})
    assert job.error is not None and "hires checkpoint" in job.error
    assert "SD1.5" in job.error and "SDXL" in job.error
    assert not job.first_pass


def test_sixteen_channels_have_a_network_of_their_own(host: Host) -> None:
    # A small FLUX with Forge's "Automatic" schedule samples NaN, with any upscaler.
    job = host.txt2img({**HIRES, "hr_upscaler": NEURAL, "scheduler": "Simple"}, checkpoint="flux")
    assert job.error is None
    assert "bundled-flux" in job.log


def test_an_unknown_name_is_the_hosts_own_error(host: Host) -> None:
    job = host.txt2img({**HIRES, "hr_upscaler": "Latent (no such)"})
    assert job.error is not None and "could not find upscaler" in job.error


@pytest.mark.parametrize("label", ["Latent", "Latent (bicubic)", "Lanczos"])
def test_other_upscalers_are_left_alone(host: Host, label: str) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": label}))
    assert job.sizes == [(128, 128)]
    assert not upscales(job)
    assert "Latent upscaler hash" not in job.infotexts[0]
    assert "Latent neural" not in job.infotexts[0]


def test_without_a_hires_pass_nothing_happens(host: Host) -> None:
    # A UI sends the dropdown's value along, whether or not hires is on.
    wrong = CATALOG["city96-x2-sdxl"].label
    job = done(host.txt2img({**JOB, "enable_hr": False, "hr_upscaler": wrong}))
    assert job.sizes == [(64, 64)]
    assert not upscales(job)
    assert "Latent upscaler hash" not in job.infotexts[0]


def test_a_normal_job_works_after_all_that(host: Host) -> None:
    job = done(host.txt2img({**HIRES, "hr_upscaler": NEURAL}))
    assert job.sizes == [(128, 128)]
    assert upscales(job) == [("bundled-sd15", "8x8", "16x16")]
    assert len(host.latent_upscale_modes()) == len(set(host.latent_upscale_modes()))
