"""What clients of the extension's API get, in every host alike.

With --api-auth USER:PASSWORD in LATENT_UPSCALE_WEBUI_ARGS, a real WebUI is asked for its guard,
too; --nowebui there runs all of it without the interface.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
import schemathesis
import torch
import webuiapi
from hypothesis import HealthCheck, given, settings
from PIL import Image
from safetensors.torch import load, save
from schemathesis.generation import GenerationMode
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.weights import files

from .. import published
from ..misbehaving import Manner
from .conftest import Host

BUNDLED = CATALOG["bundled-sd15"]
SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]


class Client:
    """Asks a host's API, with its password unless another is given."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._session = requests.Session()
        self._session.trust_env = False

    def __call__(self, route: str, body: Any = None, **how: Any) -> requests.Response:
        """GET, or with a body POST."""
        method = "GET" if body is None else "POST"
        how.setdefault("auth", self._host.credentials)
        if body is not None:
            how["data" if isinstance(body, bytes) else "json"] = body
        return self._session.request(method, self._host.url + route, timeout=300, **how)


@pytest.fixture
def api(host: Host) -> Client:
    return Client(host)


@pytest.fixture(scope="module")
def swinfir() -> bytes:
    """A pickle with the published model's keys and shapes."""
    file = io.BytesIO()
    torch.save(published.state_dict("SwinFIR4x6"), file)
    return file.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(width: int = 64, height: int = 64) -> str:
    file = io.BytesIO()
    drawn = Image.new("RGB", (width, height), "teal")
    drawn.paste("orange", (16, 16, 40, 48))
    drawn.save(file, "png")
    return encoded(file.getvalue())


def latent() -> Tensor:
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refused(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert all(word in detail for word in words), detail


def state(api: Client, id: str) -> dict[str, Any]:
    listed = api("/latent-upscale/models").json()
    return next(one for one in listed if one["id"] == id)


def nothing_fetched(host: Host) -> None:
    if any((files.MODEL_FOLDER / name).exists() for name in SWINFIR.file.local_names):
        pytest.skip(f"{SWINFIR.file.name} is in {files.MODEL_FOLDER}")
    for leftover in (host.models / SWINFIR.file.kept_name, host.models / "hashes.json"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(host.models / ".fetching", ignore_errors=True)


def test_models_are_listed_with_their_state(api: Client) -> None:
    listed = {one["id"]: one for one in api("/latent-upscale/models").json()}
    assert list(listed)[: len(CATALOG)] == list(CATALOG)
    bundled = listed["bundled-sd15"]
    assert bundled["present"] and bundled["default"] and bundled["space"] == "sd15"
    assert bundled["size"] == BUNDLED.file.size and bundled["origin"] == "bundled"
    assert listed[SWINFIR.id]["size"] > 10_000_000


def test_status_tells_device_and_memory(api: Client) -> None:
    status = api("/latent-upscale/status").json()
    assert status["device"].partition(":")[0] in ("cpu", "cuda", "mps", "xpu")
    assert status["precision"] in ("float32", "float16", "bfloat16")
    if "memory" in status:
        assert 0 <= status["memory"]["free"] <= status["memory"]["total"]


def test_a_picture_becomes_larger(host: Host, api: Client) -> None:
    host.checkpoint("sd15")
    asked = {"picture": png(96, 64), "model": "bundled-sd15", "output": "both"}
    answer = api("/latent-upscale/upscale", asked)
    assert answer.status_code == 200, answer.text
    got = answer.json()
    with Image.open(io.BytesIO(base64.b64decode(got["picture"]))) as picture:
        assert picture.size == (192, 128)
        assert len(picture.getcolors(1 << 16) or [0, 0]) > 1
    assert tuple(load(base64.b64decode(got["latent"]))["latent"].shape) == (1, 4, 16, 24)
    assert (got["width"], got["height"], got["space"]) == (192, 128, "sd15")
    assert got["hash"] == BUNDLED.file.sha256[:10]  # type: ignore[index]
    loaded = state(api, "bundled-sd15")["loaded"]
    assert set(loaded) >= {"cpu"}


def test_a_latent_becomes_what_the_library_makes_of_it(api: Client) -> None:
    expected = lib_latent_upscale.load("bundled-sd15")(latent(), (16, 24))
    asked = {"latent": encoded(save({"latent": latent()})), "output": "latent"}
    answer = api("/latent-upscale/upscale", {**asked, "model": "bundled-sd15"}).json()
    larger = load(base64.b64decode(answer["latent"]))["latent"]
    # Half precision, where the device is run in it, is 1e-2 off at most.
    assert torch.allclose(larger, expected, atol=2e-2)


def test_unload_takes_models_out(api: Client) -> None:
    asked = {"latent": encoded(save({"latent": latent()})), "output": "latent"}
    assert api("/latent-upscale/upscale", {**asked, "model": "bundled-sd15"}).ok
    assert "bundled-sd15" in api("/latent-upscale/unload", {}).json()["models"]
    assert api("/latent-upscale/status").json()["models"] == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "a picture or a latent"),
        ({"picture": "/etc/passwd"}, 422, "base64"),
        ({"picture": encoded(b"no picture")}, 422, "no picture"),
        ({"picture": png(), "model": "../../config"}, 404, "no such model"),
        ({"picture": png(), "model": "city96-x2-sdxl"}, 422, "SDXL"),
        ({"picture": png(), "factor": 100}, 422, "factor"),
        ({"picture": png(), "width": 8192, "height": 8192}, 422, "too large"),
        ({"latent": encoded(save({"latent": torch.ones(1, 16, 8, 8)}))}, 422, "16 channels"),
        (b'{"factor": NaN, "picture": "AAAA"}', 422, "factor"),
        (b'{"picture": "\\ud800"}', 422, "base64"),
        (b"[" * 100_000, 400, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_cannot_be_done_is_told(api: Client, body: Any, status: int, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api("/latent-upscale/upscale", body, headers=headers)
    if status == 400:  # some versions of FastAPI call it 422
        assert answer.status_code in (400, 422)
    else:
        refused(answer, status, words)


def test_a_model_is_fetched_in_the_background_and_used(
    host: Host, api: Client, swinfir: bytes
) -> None:
    nothing_fetched(host)
    half = len(swinfir) // 2
    host.mirror.serve(f"/{SWINFIR.file.name}", swinfir, Manner(stall=half), Manner())
    asked = {"model": SWINFIR.id}

    def download() -> dict[str, Any]:
        listed = api("/latent-upscale/status").json()["downloads"]
        return next(one for one in listed if one["model"] == SWINFIR.id)

    assert api("/latent-upscale/fetch", asked).json()["state"] in ("queued", "fetching")
    until(lambda: 0.8 * half < download()["done"] <= half)
    assert api("/latent-upscale/fetch", {**asked, "stop": True}).ok
    until(lambda: download()["state"] == "stopped", seconds=5)
    assert state(api, SWINFIR.id)["arrived"] > 0.8 * half

    assert api("/latent-upscale/fetch", asked).ok
    until(lambda: download()["state"] == "done")
    assert state(api, SWINFIR.id)["present"]
    picture = {"picture": png(), "model": SWINFIR.id, "width": 96}
    answer = api("/latent-upscale/upscale", picture).json()
    assert (answer["model"], answer["width"], answer["height"]) == (SWINFIR.id, 96, 96)


def test_what_is_fetched_on_use_shows_and_can_be_interrupted(
    host: Host, api: Client, swinfir: bytes
) -> None:
    nothing_fetched(host)
    path = f"/{SWINFIR.file.name}"
    host.mirror.serve(path, swinfir, Manner(stall=len(swinfir) // 2))
    answers: list[requests.Response] = []

    def ask() -> None:
        asked = {"picture": png(), "model": SWINFIR.id}
        answers.append(Client(host)("/latent-upscale/upscale", asked))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: f"fetching {SWINFIR.id}" in str(host.progress()[1]))
    until(lambda: 0.4 < host.progress()[0] < 0.6)
    host.interrupt()
    thread.join(5)
    assert answers, "it was not interrupted within 5 s"
    refused(answers[0], 409, "stopped")
    assert api("/latent-upscale/upscale", {"picture": png(), "model": "bundled-sd15"}).ok


def test_passwords_are_asked_for_as_for_the_hosts_own_routes(host: Host, api: Client) -> None:
    if host.credentials is None:
        pytest.skip("without --api-auth in LATENT_UPSCALE_WEBUI_ARGS")
    user, password = host.credentials
    for route, body in (
        ("models", None),
        ("status", None),
        ("fetch", {"model": "x"}),
        ("unload", {}),
        ("upscale", {"picture": png()}),
    ):
        for auth in (None, (user, password + "x"), ("x" + user, password)):
            answer = api(f"/latent-upscale/{route}", body, auth=auth)
            own = api("/sdapi/v1/progress", auth=auth)
            assert answer.status_code == own.status_code == 401
            assert answer.json() == own.json()
            for name in ("WWW-Authenticate", "Content-Type"):
                assert answer.headers.get(name) == own.headers.get(name)


def test_it_is_described(api: Client) -> None:
    assert api("/docs", auth=None).ok
    described = api("/openapi.json").json()
    for route in ("models", "status", "fetch", "unload", "upscale"):
        (method,) = described["paths"][f"/latent-upscale/{route}"].values()
        assert method["summary"] and method["description"]
        assert {"200", "404", "409", "413", "422"} <= set(method["responses"])
    assert "UpscaleRequest" in described["components"]["schemas"]


def test_a_fuzz_by_the_description_finds_no_error(host: Host, api: Client) -> None:
    schema = schemathesis.openapi.from_dict(api("/openapi.json").json())
    for route in ("fetch", "unload", "upscale"):
        operation = schema[f"/latent-upscale/{route}"]["POST"]
        cases = operation.as_strategy(GenerationMode.POSITIVE)
        cases |= operation.as_strategy(GenerationMode.NEGATIVE)

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(case=cases)
        def fuzz(case: Any) -> None:
            session = requests.Session()
            session.trust_env = False
            answer = case.call(base_url=host.url, session=session, auth=host.credentials)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert "Traceback" not in answer.text

        fuzz()


class WebUIApi(webuiapi.WebUIApi):
    """The client, with what Forge wants besides and the client has no argument for."""

    def post_and_get_api_result(self, url: str, json: Any, use_async: bool) -> Any:
        json = {**json, "hr_additional_modules": ["Use same choices"]}
        return super().post_and_get_api_result(url, json, use_async)


def test_webuiapi_drives_a_hires_job(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    user, password = host.credentials or (None, None)
    client = WebUIApi(baseurl=f"{host.url}/sdapi/v1", username=user, password=password)
    result = client.txt2img(
        prompt="a cat",
        seed=1,
        steps=2,
        width=64,
        height=64,
        cfg_scale=2,
        sampler_name="Euler",
        scheduler="Automatic",
        enable_hr=True,
        hr_scale=2,
        hr_upscaler="Latent (neural)",
        hr_second_pass_steps=2,
        denoising_strength=0.7,
        override_settings={"sd_model_checkpoint": host.checkpoint("sd15")},
    )
    assert result.image.size == (128, 128)
    (infotext,) = result.info["infotexts"]
    assert "Hires upscaler: Latent (neural)" in infotext
    assert f"Latent neural SD15: {BUNDLED.label}" in infotext
    assert f"Latent upscaler hash: {BUNDLED.file.sha256[:10]}" in infotext  # type: ignore[index]
    assert json.loads(json.dumps(result.json))["images"]
