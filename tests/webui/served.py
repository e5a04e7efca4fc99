"""The double's API by HTTP, as much of it as clients of the extension need.

As in the hosts: one application, whose own routes are guarded one by one when there are
passwords, and which makes JSON of every error.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from secrets import compare_digest
from typing import Any

import uvicorn
from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image

from .double import Double, Job


def application(double: Double, api: bool = True) -> FastAPI:
    """The application of a host, with what the extension adds to it.

    api: whether the host was started with its API.
    """
    app = host_application(double) if api else FastAPI()
    double.start_app(app)
    return app


def host_application(double: Double) -> FastAPI:
    """The application of a host with its API, before extensions are told of it."""
    app = FastAPI()
    _add_api(app, double)
    return app


def _add_api(app: FastAPI, double: Double) -> None:
    shared = double.shared
    passwords = dict(one.split(":") for one in (shared.cmd_opts.api_auth or "").split(",") if one)

    def guard(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:  # noqa: B008
        known = passwords.get(given.username)
        if known is not None and compare_digest(given.password, known):
            return True
        headers = {"WWW-Authenticate": "Basic"}
        raise HTTPException(401, "Incorrect username or password", headers=headers)

    def route(path: str, endpoint: Any, method: str = "GET") -> None:
        guards = {"dependencies": [Depends(guard)]} if passwords else {}
        app.add_api_route(f"/sdapi/v1/{path}", endpoint, methods=[method], **guards)

    def txt2img(payload: dict[str, Any] = Body(...)) -> Any:  # noqa: B008
        settings = payload.pop("override_settings", None) or {}
        with double.queue_lock:
            shared.state.begin(job="txt2img")
            job = double.txt2img({**payload, "override_settings": settings})
            shared.state.end()
        if job.error is not None:
            raise RuntimeError(job.error)
        info = json.dumps({"infotexts": job.infotexts})
        return {"images": _pictures(job), "parameters": payload, "info": info}

    def progress() -> Any:
        done, text = double.progress()
        return {"progress": done, "textinfo": text, "state": {"job": shared.state.job}}

    route("txt2img", txt2img, "POST")
    route("progress", progress)
    route("interrupt", lambda: double.interrupt(), "POST")
    route("latent-upscale-modes", lambda: [{"name": n} for n in double.latent_upscale_modes()])
    route("upscalers", lambda: [{"name": one.name} for one in shared.sd_upscalers])
    route("scripts", lambda: {"txt2img": [], "img2img": []})

    @app.exception_handler(HTTPException)
    @app.exception_handler(Exception)
    async def told(_: Request, error: Exception) -> JSONResponse:
        known = vars(error)
        content = {
            "error": type(error).__name__,
            "detail": known.get("detail", ""),
            "body": known.get("body", ""),
            "errors": str(error),
        }
        return JSONResponse(content, known.get("status_code", 500))


def _pictures(job: Job) -> list[str]:
    encoded = []
    for (width, height), values in zip(job.sizes, job.pictures):
        small = Image.frombytes("F", (width // 8, height // 8), values)
        file = io.BytesIO()
        small.resize((width, height)).point(lambda value: value * 40 + 128).convert("L").save(
            file, "png"
        )
        encoded.append(base64.b64encode(file.getvalue()).decode())
    return encoded


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on the loopback; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
