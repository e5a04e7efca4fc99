"""The API in the double: answers, refusals, guards, and a fuzz by its own description."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from torch import Tensor

from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.architectures.layers import kernels
from lib_latent_upscale.catalog import CATALOG

from ..misbehaving import Manner, MisbehavingServer
from .double import Double
from .jobs import BUNDLED, CITY96, HIRES, random_city96
from .served import application, host_application

# A schema cannot tell all that is asked for, and numbers are taken from strings, too.
UNTOLD = [positive_data_acceptance, negative_data_rejection]

ROUTES = (
    ("GET", "models"),
    ("GET", "status"),
    ("POST", "fetch"),
    ("POST", "unload"),
    ("POST", "upscale"),
)


def client(double: Double, api: bool = True) -> TestClient:
    return TestClient(application(double, api), raise_server_exceptions=False)


@pytest.fixture
def api(a1111: Double) -> TestClient:
    return client(a1111)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(width: int = 64, height: int = 64) -> str:
    file = io.BytesIO()
    drawn = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    drawn.save(file, "png")
    return encoded(file.getvalue())


def latent(channels: int = 4, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def file_of(tensor: Tensor, **metadata: str) -> str:
    return encoded(save({"latent": tensor}, metadata or None))


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert all(word in detail for word in words), detail
    assert "Traceback" not in answer.text and 'File "' not in answer.text


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Where it is, and for whom


def test_the_routes_are_there_with_the_hosts_api_only(webui: Double) -> None:
    with_api, without = client(webui), client(webui, api=False)
    for method, name in ROUTES:
        url = f"/latent-upscale/{name}"
        body = {"json": {}} if method == "POST" else {}
        assert with_api.request(method, url, **body).status_code in (200, 422)
        assert without.request(method, url, **body).status_code == 404


def test_it_works_without_the_interface() -> None:
    with Double(nowebui=True) as double:
        assert client(double).get("/latent-upscale/models").status_code == 200


def test_after_reload_ui_the_new_application_has_them_once(a1111: Double) -> None:
    application(a1111)
    a1111.reload_ui()
    paths = application(a1111).openapi()["paths"]
    assert sorted(p for p in paths if "latent-upscale/" in p) == sorted(
        f"/latent-upscale/{name}" for _, name in ROUTES
    )


@pytest.mark.parametrize(("method", "name"), ROUTES)
def test_passwords_are_asked_for_as_for_the_hosts_own_routes(
    a1111: Double, method: str, name: str
) -> None:
    a1111.shared.cmd_opts.api_auth = "user:secret,other:geheim"
    api, url = client(a1111), f"/latent-upscale/{name}"
    body = {"json": {}} if method == "POST" else {}
    for auth in (None, ("user", "geheim"), ("nobody", "secret"), ("user", ""), ("", "secret")):
        answer = api.request(method, url, auth=auth, **body)
        own = api.get("/sdapi/v1/progress", auth=auth)
        assert answer.status_code == own.status_code == 401
        assert answer.json() == own.json()
        name_of = "www-authenticate"
        assert answer.headers.get(name_of) == own.headers.get(name_of)
    for auth in (("user", "secret"), ("other", "geheim")):
        assert api.request(method, url, auth=auth, **body).status_code in (200, 422)


def test_without_the_hosts_guard_there_is_no_api(
    a1111: Double, capsys: pytest.CaptureFixture[str]
) -> None:
    app = host_application(a1111)  # made before the password was there
    a1111.shared.cmd_opts.api_auth = "user:secret"
    a1111.start_app(app)
    assert TestClient(app).get("/latent-upscale/models").status_code == 404
    assert "no guard" in capsys.readouterr().out


# What there is


def test_models_are_listed_with_their_state(api: TestClient, models: Path) -> None:
    random_city96(models)
    listed = {one["id"]: one for one in api.get("/latent-upscale/models").json()}
    assert list(listed) == list(CATALOG)
    bundled = listed["bundled-sd15"]
    assert bundled == {
        "id": "bundled-sd15",
        "label": BUNDLED.label,
        "architecture": "halfway",
        "space": "sd15",
        "size": BUNDLED.file.size,
        "licence": "AGPL-3.0-or-later",
        "source": "this extension",
        "origin": "bundled",
        "present": True,
        "file": BUNDLED.file.name,
        "arrived": 0,
        "loaded": {},
        "default": True,
    }
    assert listed[CITY96.id]["present"] and listed[CITY96.id]["origin"] == "catalogue"
    assert listed[CITY96.id]["size"] == (models / CITY96.file.name).stat().st_size
    absent = listed["sudo-dat-6x6-sd15"]
    assert not absent["present"] and "file" not in absent
    assert absent["size"] == CATALOG["sudo-dat-6x6-sd15"].file.size
    assert "factor" not in listed["ttl-sd15"]


def test_a_hand_placed_model_is_listed_and_works(
    a1111: Double, api: TestClient, models: Path
) -> None:
    random_city96(models).rename(models / "mine-sd15.safetensors")
    (models / "mine-sd15.json").write_text('{"scale": 2}')
    a1111.refresh_buttons["txt2img_hr_upscaler_refresh"]()
    (mine,) = (
        one for one in api.get("/latent-upscale/models").json() if one["origin"] == "hand-placed"
    )
    assert mine["id"] == "mine-sd15.safetensors" and mine["present"]
    asked = {"model": mine["id"], "latent": file_of(latent()), "output": "latent"}
    answer = api.post("/latent-upscale/upscale", json=asked)
    assert answer.status_code == 200 and answer.json()["model"] == mine["id"]
    refused(api.post("/latent-upscale/fetch", json={"model": mine["id"]}), 409, "no address")


def test_status_tells_what_is_loaded_and_unload_takes_it_out(api: TestClient) -> None:
    before = api.get("/latent-upscale/status").json()
    assert (before["device"], before["precision"], before["policy"]) == ("cpu", "float32", "keep")
    assert before["models"] == [] and before["loaded"] == {} and "budget" not in before
    asked = {"latent": file_of(latent()), "output": "latent"}
    assert api.post("/latent-upscale/upscale", json=asked).status_code == 200
    after = api.get("/latent-upscale/status").json()
    assert after["models"] == [BUNDLED.file.name] and after["loads"] == 1
    # The file is in half precision, and has a header; a CPU packs its weights beside them.
    copies = 2 if kernels.usable(torch.ones(1)) else 1
    assert 1.9 * copies < after["loaded"]["cpu"] / BUNDLED.file.size <= 2 * copies
    (bundled,) = (o for o in api.get("/latent-upscale/models").json() if o["loaded"])
    assert bundled["loaded"] == after["loaded"]

    other = api.post("/latent-upscale/unload", json={"model": CITY96.id})
    assert other.json() == {"models": []}
    assert api.post("/latent-upscale/unload", json={}).json() == {"models": ["bundled-sd15"]}
    assert api.get("/latent-upscale/status").json()["models"] == []
    refused(api.post("/latent-upscale/unload", json={"model": "no"}), 404, "no such model")


# Upscaling


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_a_picture_becomes_larger(webui: Double, prefix: str) -> None:
    answer = client(webui).post(
        "/latent-upscale/upscale", json={"picture": prefix + png(96, 64), "factor": 2}
    )
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert opened(got.pop("picture")).size == (192, 128) == (got.pop("width"), got.pop("height"))
    assert got.pop("seconds") > 0
    assert got == {"model": "bundled-sd15", "space": "sd15", "hash": BUNDLED.file.sha256[:10]}


def test_a_latent_gets_what_a_hires_pass_gets(a1111: Double, api: TestClient) -> None:
    a1111.txt2img({**HIRES, "seed": 1})
    asked = {"latent": file_of(a1111.noise([1], 8, 8)), "output": "both", "width": 128}
    got = api.post("/latent-upscale/upscale", json=asked).json()
    larger = load(base64.b64decode(got["latent"]))["latent"]
    assert torch.equal(larger, a1111.hires_inputs[0])
    assert opened(got["picture"]).size == (128, 128)


def test_a_latent_of_another_space_needs_no_checkpoint_of_it(
    a1111: Double, api: TestClient, models: Path
) -> None:
    entry = CATALOG["city96-x2-sdxl"]
    random_city96(models).rename(models / entry.file.name)
    asked = {"latent": file_of(latent()), "model": entry.id, "output": "latent"}
    got = api.post("/latent-upscale/upscale", json=asked)
    assert got.status_code == 200 and got.json()["space"] == "sdxl"
    refused(
        api.post("/latent-upscale/upscale", json={**asked, "output": "both"}),
        422, "is for SDXL latents", "bundled-sd15",
    )  # fmt: skip


def test_it_waits_for_its_turn_and_can_be_interrupted(
    a1111: Double, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = importlib.import_module("lib_latent_upscale.webui.host")
    encode = host.encode

    def then_interrupt(*arguments: Any) -> Tensor:
        assert a1111.queue_lock.locked()
        assert a1111.progress()[1] == "Latent upscale: encoding"
        a1111.interrupt()
        return encode(*arguments)

    monkeypatch.setattr(host, "encode", then_interrupt)
    answer = api.post("/latent-upscale/upscale", json={"picture": png()})
    refused(answer, 409, "interrupted")
    assert not a1111.queue_lock.locked()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "give a picture or a latent"),
        ({"picture": png(), "latent": file_of(latent())}, 422, "and not both"),
        ({"picture": png(), "factor": 2, "width": 128}, 422, "give a factor, or"),
        ({"picture": "/etc/passwd"}, 422, "not in base64"),
        ({"picture": "file:///etc/passwd"}, 422, "not in base64"),
        ({"picture": "http://127.0.0.1/x.png"}, 422, "not in base64"),
        ({"picture": "AAAA"}, 422, "no picture"),
        ({"picture": png(32, 64)}, 422, "at least 64x64"),
        ({"picture": png()[:200]}, 422, "no picture"),
        ({"picture": png(), "model": "../../models/compact"}, 404, "no such model"),
        ({"picture": png(), "model": "city96-x2-sdxl"}, 422, "is for SDXL latents"),
        ({"picture": png(), "factor": 9}, 422, "factor"),
        ({"picture": png(), "factor": 0.5}, 422, "factor"),
        ({"picture": png(1024, 64), "factor": 8.0, "height": None}, 200, ""),
        ({"picture": png(2048, 64), "factor": 8.0}, 422, "16384x512 is too large"),
        ({"picture": png(), "width": 9000}, 422, "width"),
        ({"picture": png(), "width": 8192, "height": 8192}, 422, "too large"),
        ({"picture": png(), "output": "file"}, 422, "output"),
        ({"picture": png(), "model": "x" * 201}, 422, "model"),
        ({"latent": "AAAA"}, 422, "damaged"),
        ({"latent": png()}, 422, "damaged"),
        ({"latent": file_of(latent(16))}, 422, "16 channels"),
        ({"latent": file_of(latent(height=7))}, 422, "at least 64x64"),
        ({"latent": file_of(latent(height=2000))}, 422, "too large"),
        ({"latent": file_of(latent().repeat(2, 1, 1, 1))}, 422, "one latent at a time"),
        ({"latent": file_of(latent()[0])}, 422, "four"),
        ({"latent": file_of(latent().int())}, 422, "floating point"),
        ({"latent": file_of(latent() * torch.nan)}, 422, "NaN"),
        ({"latent": file_of(latent(), space="sdxl")}, 422, "sdxl"),
        ({"latent": encoded(save({"a": latent(), "b": latent()}))}, 422, "2 tensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told(
    api: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    answer = api.post("/latent-upscale/upscale", json=body)
    if status == 200:
        assert answer.status_code == 200
    else:
        refused(answer, status, words)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"factor": NaN, "picture": "AAAA"}',
        b'{"factor": Infinity, "picture": "AAAA"}', b'{"factor": 1e999, "picture": "AAAA"}',
        b'{"width": 1e400, "picture": "AAAA"}', b'{"picture": "\\ud800"}',
        b'{"model": "\\ud800", "picture": "AAAA"}', b'{"output": "\\ud800", "picture": "A"}',
        b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"picture": {"a": [1]}}',
        b'{"width": ' + b"9" * 5000 + b', "picture": "AAAA"}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_no_body_is_too_odd(api: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for name in ("upscale", "fetch", "unload"):
        answer = api.post(f"/latent-upscale/{name}", content=body, headers=headers)
        assert answer.status_code in (200, 400, 404, 422), answer.text
        if answer.status_code != 200:
            assert isinstance(answer.json()["detail"], str) and answer.json()["detail"]
            assert len(answer.text) < 4000


def test_a_request_that_is_too_large_is_not_read(api: TestClient) -> None:
    module = importlib.import_module("lib_latent_upscale.webui.api")

    def endless() -> Iterator[bytes]:
        yield b'{"picture": "'
        for _ in range(module.MAX_BODY // 2**20 + 2):
            yield b"A" * 2**20

    refused(api.post("/latent-upscale/upscale", content=endless()), 413, "64 MB")
    announced = {"Content-Length": str(module.MAX_BODY + 1)}
    refused(api.post("/latent-upscale/upscale", content=b"{}", headers=announced), 413, "64 MB")


def test_a_picture_that_would_be_huge_is_not_unpacked(api: TestClient) -> None:
    header = b"IHDR" + (20000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    data = zlib.compress(bytes(1 << 20))
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + data):
        content += (len(chunk) - 4).to_bytes(4, "big") + chunk
        content += zlib.crc32(chunk).to_bytes(4, "big")
    answer = api.post("/latent-upscale/upscale", json={"picture": encoded(content)})
    refused(answer, 422, "too large")


def test_memory_that_runs_out_is_told(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> Tensor:
        raise MemoryError

    host = importlib.import_module("lib_latent_upscale.webui.host")
    monkeypatch.setattr(host, "encode", run_out)
    refused(api.post("/latent-upscale/upscale", json={"picture": png()}), 413, "memory ran out")


def test_a_missing_model_is_told_where_nothing_is_fetched(a1111: Double, api: TestClient) -> None:
    a1111.shared.opts.set("latent_upscale_fetch_on_use", False)
    asked = {"picture": png(), "model": "sudo-dat-6x6-sd15"}
    answer = api.post("/latent-upscale/upscale", json=asked)
    refused(answer, 409, "are not in", "fetch sudo-dat-6x6-sd15")


# Fetching


@pytest.fixture
def published(a1111: Double, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a model that can be fetched: a mirror has it."""
    content = save(City96(channels=4, dim=256, depth=2, scale=2.0).to_state_dict())
    server.serve(f"/{CITY96.file.name}", content)
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    for name, value in (
        ("size", len(content)),
        ("sha256", hashlib.sha256(content).hexdigest()),
    ):
        object.__setattr__(_entry(CITY96.id).file, name, value)
    return CITY96.id


def _entry(id: str) -> Any:
    return importlib.import_module("lib_latent_upscale.catalog").CATALOG[id]


def download(api: TestClient, id: str) -> dict[str, Any]:
    all_ = api.get("/latent-upscale/status").json()["downloads"]
    return next(one for one in all_ if one["model"] == id)


def test_a_download_begins_and_its_end_is_seen(
    api: TestClient, published: str, models: Path
) -> None:
    answer = api.post("/latent-upscale/fetch", json={"model": published})
    assert answer.status_code == 200
    assert answer.json()["state"] in ("queued", "fetching")
    eventually(lambda: download(api, published)["state"] == "done")
    size = (models / CITY96.file.name).stat().st_size
    assert download(api, published)["done"] == download(api, published)["total"] == size
    again = api.post("/latent-upscale/fetch", json={"model": published}).json()
    assert (again["state"], again["done"]) == ("done", size)


def test_a_download_shows_how_far_it_is_and_can_be_stopped(
    api: TestClient, published: str, server: MisbehavingServer, models: Path
) -> None:
    path = f"/{CITY96.file.name}"
    half = len(server.files[path]) // 2
    server.manners[path] = [Manner(stall=half), Manner()]
    asked = {"model": published}
    assert api.post("/latent-upscale/fetch", json=asked).status_code == 200
    eventually(lambda: 0 < download(api, published)["done"] <= half)
    second = api.post("/latent-upscale/fetch", json=asked).json()
    assert second["state"] == "fetching"  # it is the same one
    api.post("/latent-upscale/fetch", json={**asked, "stop": True})
    eventually(lambda: download(api, published)["state"] == "stopped", seconds=3)
    assert not (models / CITY96.file.name).exists()
    (state,) = (o for o in api.get("/latent-upscale/models").json() if o["id"] == published)
    assert 0 < state["arrived"] <= half
    api.post("/latent-upscale/fetch", json=asked)
    eventually(lambda: download(api, published)["state"] == "done")
    assert len(server.asked_for(path)) == 2


def test_a_download_that_fails_says_why(
    api: TestClient, published: str, server: MisbehavingServer
) -> None:
    server.manners[f"/{CITY96.file.name}"] = [Manner(status=404)]
    api.post("/latent-upscale/fetch", json={"model": published})
    eventually(lambda: download(api, published)["state"] == "failed")
    assert "could not be fetched" in download(api, published)["error"]


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("nothing", 404, "no such model"),
        ("../../etc/passwd", 404, "no such model"),
        ("https://example.org/x.pth", 404, "no such model"),
        ("bundled-sd15", 409, "no address"),
    ],
)
def test_only_what_the_catalogue_has_is_fetched(
    api: TestClient, model: str, status: int, words: str
) -> None:
    refused(api.post("/latent-upscale/fetch", json={"model": model}), status, words)
    assert api.get("/latent-upscale/status").json()["downloads"] == []


# Its description


def test_it_is_described(api: TestClient) -> None:
    description = api.get("/openapi.json").json()
    assert api.get("/docs").status_code == 200
    for method, name in ROUTES:
        route = description["paths"][f"/latent-upscale/{name}"][method.lower()]
        assert route["summary"] and route["description"]
        assert {"200", "401", "404", "409", "413", "422"} <= set(route["responses"])
    for name in ("UpscaleRequest", "UpscaleAnswer", "ModelState", "Status", "DownloadState"):
        for field in description["components"]["schemas"][name]["properties"].values():
            assert field.get("type") or field.get("$ref") or field.get("anyOf")


@pytest.mark.parametrize(("method", "name"), ROUTES)
def test_a_fuzz_by_the_description_finds_no_error(
    a1111: Double, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    """What is sent is made from the description, fitting and not; what comes must fit it too."""
    a1111.shared.opts.set("latent_upscale_fetch_on_use", False)
    downloads = importlib.import_module("lib_latent_upscale.webui.models").downloads
    monkeypatch.setattr(downloads, "_run", lambda id, stop: None)  # nothing is to be fetched
    schema = schemathesis.openapi.from_asgi("/openapi.json", application(a1111))
    operation = schema[f"/latent-upscale/{name}"][method]
    cases = operation.as_strategy(GenerationMode.POSITIVE)
    if method == "POST":
        cases |= operation.as_strategy(GenerationMode.NEGATIVE)
    files, answers = {"picture": png(), "latent": file_of(latent())}, Counter[int]()

    @settings(max_examples=100 if method == "POST" else 5, suppress_health_check=list(HealthCheck))
    @given(case=cases, model=st.sampled_from(list(CATALOG)), real=st.booleans())
    def fuzz(case: Any, model: str, real: bool) -> None:
        if real and isinstance(case.body, dict):  # what no chance would draw
            known = {"model": model, **files}
            case.body = {key: known.get(key, value) for key, value in case.body.items()}
        answers[case.call_and_validate(excluded_checks=UNTOLD).status_code] += 1

    fuzz()
    assert answers[200] > 0
