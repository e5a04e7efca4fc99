"""The API: what the page does, by HTTP, beside the WebUI's own and guarded as that is."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from torch import Tensor

from .. import __version__, latent_files
from ..downloads import Download, State
from ..inference import Interrupted
from ..latent_files import LatentFileError
from ..shelf import Item, Origin, UnknownModelError
from ..spaces import LatentSpace
from ..weights import files
from ..weights.errors import WeightsError
from ..weights.fetching import Stopped
from . import host, models, pictures, settings, workbench
from .api_models import (
    DownloadState,
    FetchRequest,
    Memory,
    ModelState,
    Output,
    Problem,
    Status,
    Unloaded,
    UnloadRequest,
    UpscaleAnswer,
    UpscaleRequest,
)
from .pictures import PictureError

PREFIX = "/latent-upscale"

MAX_BODY = 64 << 20
"""Bytes of a request: the largest picture allowed, as a PNG of noise, has 50 MB."""

_HOSTS_OWN = "/sdapi/v1/progress"  # a route that every host has, and guards as all of its own


def add_to(app: FastAPI) -> None:
    """Adds the routes, where the host has its own API, behind the same guard."""
    routes = {getattr(route, "path", ""): route for route in app.routes}
    own = routes.get(_HOSTS_OWN)
    if not isinstance(own, APIRoute):
        return
    if host.api_has_passwords() and not own.dependencies:
        print("Latent upscale: --api-auth is given, but the WebUI's API has no guard; no API")
        return
    app.include_router(router, dependencies=own.dependencies)


class _Route(APIRoute):
    """Refuses what is too large before it is read whole, and says in words what is wrong."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def handle_limited(request: Request) -> Response:
            try:
                return await handle(await _read(request))
            except RequestValidationError as error:
                raise HTTPException(422, _words(error.errors())) from None

        return handle_limited


async def _read(request: Request) -> Request:
    """The request with its body read. Raises 413."""
    body = bytearray()
    announced = request.headers.get("content-length", "")
    too_large = announced.isdecimal() and int(announced) > MAX_BODY
    if not too_large:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                too_large = True
                break
    if too_large:
        raise HTTPException(413, f"the request is too large: up to {MAX_BODY >> 20} MB are read")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, receive)


def _words(errors: Sequence[Any]) -> str:
    """What is wrong, without what was sent, which may be long or no text at all."""
    found = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"] if part != "body")
        found.append(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return "; ".join(found).encode("ascii", "backslashreplace").decode()[:1000]


_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "Wrong or no password, where --api-auth is given"},
    404: {"model": Problem, "description": "There is no such model"},
    409: {"model": Problem, "description": "Not now, or not with this model"},
    413: {"model": Problem, "description": "Too large, for a request or for the memory"},
    422: {"model": Problem, "description": "What was sent cannot be worked with"},
    400: {"model": Problem, "description": "This is no JSON"},
}

router = APIRouter(prefix=PREFIX, route_class=_Route, responses=_REFUSALS, tags=["latent upscale"])


@contextmanager
def _told() -> Iterator[None]:
    """Errors as answers."""
    try:
        yield
    except UnknownModelError as error:
        raise HTTPException(404, str(error)) from error
    except (workbench.WrongSpaceError, PictureError, LatentFileError) as error:
        raise HTTPException(422, str(error)) from error
    except workbench.NoMemoryError as error:
        raise HTTPException(413, str(error)) from error
    except (Interrupted, Stopped) as error:
        raise HTTPException(409, str(error)) from error
    except (workbench.WorkbenchError, WeightsError) as error:
        raise HTTPException(409, str(error)) from error


@router.get("/models", response_model=list[ModelState], response_model_exclude_none=True)
def list_models() -> Any:
    """All models, those of the catalogue first, and what is here of them."""
    with _told():
        return [_model(item) for item in models.shelf().items()]


@router.get("/status", response_model=Status, response_model_exclude_none=True)
def status() -> Any:
    """What is loaded, where there is room, and how far downloads are."""
    statistics, device = models.cache.statistics(), host.device()
    room = models.cache.residence.room(device)
    return Status(
        version=__version__,
        device=str(device),
        memory=Memory(free=room[0], total=room[1]) if room is not None else None,
        precision=settings.precision() or str(host.precision(device)).removeprefix("torch."),
        policy=settings.policy().value,
        budget=settings.budget(),
        loaded=statistics.bytes,
        models=[path.name for path in statistics.models],
        hits=statistics.hits,
        loads=statistics.loads,
        copies=statistics.copies,
        downloads=[_download(one) for one in models.downloads.all()],
    )


@router.post("/fetch", response_model=DownloadState, response_model_exclude_none=True)
def fetch(request: FetchRequest) -> Any:
    """Begins to download a model in the background, or stops that; answers at once.

    GET /latent-upscale/status tells how far it is, and what went wrong. A model that is here
    already is "done".
    """
    with _told():
        item = models.shelf().item(request.model)
        if item.origin is not Origin.CATALOGUE:
            raise HTTPException(409, f"{request.model} has no address to download it from")
        known = models.downloads.get(request.model)
        if request.stop:
            models.downloads.stop(request.model)
            return _download(known or Download(request.model, State.STOPPED, item.arrived))
        if item.present:
            return _download(Download(request.model, State.DONE, item.size, item.size))
        return _download(models.downloads.start(request.model))


@router.post("/unload", response_model=Unloaded)
def unload(request: UnloadRequest) -> Any:
    """Takes a model, or all, out of memory; waits for the job that runs."""
    with _told():
        shelf = models.shelf()
        items = [shelf.item(request.model)] if request.model is not None else shelf.items()
        with host.queue():
            unloaded = [item.entry.id for item in items if item.loaded]
            shelf.unload(request.model)
        return Unloaded(models=unloaded)


_EXAMPLE = {
    "picture": base64.b64encode(pictures.to_png(Image.new("RGB", (64, 64), "teal"))).decode(),
    "model": "bundled-sd15",
    "factor": 2,
}


@router.post(
    "/upscale",
    response_model=UpscaleAnswer,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": {"content": {"application/json": {"example": _EXAMPLE}}}},
)
def upscale(request: UpscaleRequest) -> Any:
    """Makes a picture or a latent larger by a model; waits for its turn as every job.

    Shows in the WebUI's progress, and /sdapi/v1/interrupt ends it. A model that is not here is
    downloaded first where the settings allow it.
    """
    if (request.picture is None) == (request.latent is None):
        raise HTTPException(422, "give a picture or a latent, and not both")
    if request.factor is not None and (request.width or request.height):
        raise HTTPException(422, "give a factor, or a width and a height, and not both")
    with _told():
        content = _decoded(request.picture or request.latent or "")
        picture = pictures.read(content) if request.picture is not None else None
        entry = models.shelf().entry(request.model) if request.model is not None else None
        if picture is None and entry is not None:
            _latent(content, entry.space)  # to know what is wrong with it before waiting
        with workbench.opened() as bench:
            if entry is None or picture is not None or request.output is not Output.LATENT:
                entry = bench.choose(request.model)
            small = bench.encode(picture) if picture else _latent(content, entry.space)
            size = workbench.target(
                small, width=request.width, height=request.height, factor=request.factor
            )
            result = bench.upscale(small, entry, size)
            large = bench.decode(result.latent) if request.output is not Output.LATENT else None
        answer = UpscaleAnswer(
            width=size[1] * pictures.FACTOR,
            height=size[0] * pictures.FACTOR,
            model=entry.id,
            hash=files.short_hash(result.path),
            space=entry.space.id,
            seconds=result.seconds,
        )
        if large is not None:
            answer.picture = _encoded(pictures.to_png(large))
        if request.output is not Output.PICTURE:
            answer.latent = _encoded(latent_files.to_bytes(result.latent, entry.space))
        return answer


def _decoded(text: str) -> bytes:
    """What base64 stands for, data:... before it or not. Nothing is ever opened by a name."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise HTTPException(422, f"the picture or latent is not in base64: {error}") from error


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _latent(content: bytes, space: LatentSpace) -> Tensor:
    """One latent of an allowed size, from a .safetensors file."""
    latent = latent_files.from_bytes(content, space)
    workbench.check(latent)
    return latent


def _model(item: Item) -> ModelState:
    entry = item.entry
    return ModelState(
        id=entry.id,
        label=entry.label,
        architecture=entry.architecture,
        space=entry.space.id,
        factor=entry.factor,
        size=item.size,
        licence=entry.licence,
        source=entry.source,
        origin=item.origin,
        present=item.present,
        file=item.path.name if item.path is not None else None,
        arrived=item.arrived,
        problem=item.problem,
        loaded=dict(item.loaded),
        default=settings.default_entry(entry.space) is entry,
    )


def _download(download: Download) -> DownloadState:
    return DownloadState(
        model=download.id,
        state=download.state,
        done=download.done,
        total=download.total,
        error=download.error,
    )
