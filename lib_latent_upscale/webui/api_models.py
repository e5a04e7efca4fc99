"""What the API takes and gives.

For pydantic 1, which AUTOMATIC1111 and reForge have, and for 2, which Forge has. What is None is
left out of answers: pydantic 1 cannot say in a schema that a value may be null.
"""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, Field

from ..downloads import State
from ..shelf import Origin
from .pictures import MAX_SIDE, MIN_SIDE

_ID = "its id, as /latent-upscale/models lists it"


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="In words, with what to do about it.")


class ModelState(BaseModel):
    """A model, and what is here of it."""

    id: str
    label: str = Field(description="Its name in the hires dropdown, for hr_upscaler.")
    architecture: str
    space: str = Field(description="The kind of latents: sd15 (SD2, too), sdxl, sd3 or flux.")
    factor: float | None = Field(
        default=None, description="Its own factor; left out: any from 1 to 2."
    )
    size: int = Field(description="Bytes, of the file or of what a download of it has.")
    licence: str
    source: str
    origin: Origin
    present: bool = Field(description="Whether its file is here.")
    file: str | None = Field(default=None, description="The file's name.")
    arrived: int = Field(description="Bytes of a download that has begun and not ended.")
    problem: str | None = Field(default=None, description="Why its file cannot be used.")
    loaded: dict[str, int] = Field(description="Bytes of its weights in memory, by device.")
    default: bool = Field(description='Whether "Latent (neural)" stands for it.')


class DownloadState(BaseModel):
    """A download, as it stands."""

    model: str
    state: State
    done: int = Field(description="Bytes that are here.")
    total: int | None = Field(default=None, description="Bytes in all.")
    error: str | None = Field(default=None, description="Why it failed.")


class Memory(BaseModel):
    """Bytes of a device's memory."""

    free: int
    total: int


class Status(BaseModel):
    """What is loaded, and where there is room."""

    version: str
    device: str = Field(description="The one that the WebUI samples on, and our networks run on.")
    memory: Memory | None = Field(
        default=None, description="Of that device; left out where unknown."
    )
    precision: str = Field(description="What networks run in there.")
    policy: str = Field(description="What becomes of a model on the device after its use.")
    budget: int | None = Field(
        default=None,
        description="Bytes that kept models may take there; left out: decided by its memory.",
    )
    loaded: dict[str, int] = Field(description="Bytes of loaded models' weights, by device.")
    models: list[str] = Field(description="The files of the models that are loaded.")
    hits: int = Field(description="Uses that found their model, or their copy, there.")
    loads: int = Field(description="Times that a model was read from disk.")
    copies: int = Field(description="Times that a model was brought to a device.")
    downloads: list[DownloadState] = Field(description="The last download of each model.")


class FetchRequest(BaseModel):
    """Which model to download."""

    model: str = Field(description=f"The model: {_ID}.", max_length=200)
    stop: bool = Field(
        default=False,
        description="Stop its download instead; what has arrived is kept for the next one.",
    )


class UnloadRequest(BaseModel):
    """Which model to take out of memory."""

    model: str | None = Field(
        default=None, description=f"The model: {_ID}; left out: all of them.", max_length=200
    )


class Unloaded(BaseModel):
    """What was taken out of memory."""

    models: list[str]


class Output(Enum):
    """What an answer is to have."""

    PICTURE = "picture"
    LATENT = "latent"
    BOTH = "both"


class UpscaleRequest(BaseModel):
    """A picture or a latent to make larger, and how."""

    picture: str | None = Field(
        default=None,
        description="A PNG, JPEG or WebP file in base64, with or without data:... before it. It "
        "is encoded by the VAE of the loaded checkpoint.",
    )
    latent: str | None = Field(
        default=None,
        description="In place of the picture: a .safetensors file in base64, with one tensor "
        "(1, C, H, W) in the scale that the WebUI's UNet has.",
    )
    model: str | None = Field(
        default=None,
        description=f"The model: {_ID}; left out: the default of the loaded checkpoint.",
        max_length=200,
    )
    width: int | None = Field(
        default=None,
        description="Of the picture, in pixels, rounded to a multiple of 8. One side alone keeps "
        "the shape.",
        ge=MIN_SIDE,
        le=MAX_SIDE,
    )
    height: int | None = Field(default=None, description="As width.", ge=MIN_SIDE, le=MAX_SIDE)
    factor: float | None = Field(
        default=None,
        description="In place of width and height; 2 where nothing is given.",
        ge=1,
        le=8,
    )
    output: Output = Field(default=Output.PICTURE, description="What the answer is to have.")


class UpscaleAnswer(BaseModel):
    """What was asked for."""

    picture: str | None = Field(default=None, description="A PNG file in base64.")
    latent: str | None = Field(default=None, description="A .safetensors file in base64.")
    width: int = Field(description="Of the picture, in pixels.")
    height: int
    model: str
    hash: str = Field(description="The first digits of the sha256 of the model's file.")
    space: str = Field(description="The kind of latents.")
    seconds: float = Field(description="From latent to latent.")
