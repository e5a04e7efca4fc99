"""Reading and writing latents: .safetensors, ComfyUI's .latent, and .npy.

Everything here is in UNet scale, as the WebUIs have it, but for .latent files: ComfyUI keeps
latents in the VAE's raw scale, and they are converted on the way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from .spaces import RAW, SD15, LatentSpace

SUFFIXES = (".safetensors", ".latent", ".npy")

_COMFY_KEY = "latent_tensor"
_COMFY_VERSION = "latent_format_version_0"  # an empty tensor that marks raw scale


class LatentFileError(ValueError):
    """A file that holds no latent this program can use; the message says why."""


def read(path: Path, space: LatentSpace) -> Tensor:
    """The latent (N, C, H, W) of a file, in UNet scale of `space`, float32.

    Raises `LatentFileError` for a file of another kind, a damaged one, and anything but a
    finite, four-dimensional floating-point tensor with the space's channels.
    """
    suffix = _suffix(path)
    if not path.is_file():
        raise LatentFileError(f"{path}: no such file")
    try:
        if suffix == ".npy":
            latent = torch.from_numpy(np.load(path, allow_pickle=False))
        elif suffix == ".latent":
            latent = _from_comfy(path, load_file(path), space)
        else:
            latent = _only(path, load_file(path))
    except (SafetensorError, OSError, TypeError, ValueError, EOFError) as error:
        if isinstance(error, LatentFileError):
            raise
        raise LatentFileError(f"{path} is damaged or no {suffix} file: {error}") from error
    _check(path, latent, space)
    return latent.float()


def from_bytes(content: bytes, space: LatentSpace) -> Tensor:
    """The latent of a .safetensors file's content: as `read`, and raises what that raises.

    A file that says that it is of another space is refused, too.
    """
    name = Path("the latent")
    try:
        latent = _only(name, load(content))
        declared = _metadata(content).get("space", space.id)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, LatentFileError):
            raise
        raise LatentFileError(f"{name} is damaged or no .safetensors file: {error}") from error
    if declared != space.id:
        raise LatentFileError(f"{name} says that it is for {str(declared)[:50]}, not {space.id}")
    _check(name, latent, space)
    return latent.float()


def to_bytes(latent: Tensor, space: LatentSpace) -> bytes:
    """The content of a .safetensors file with a latent in UNet scale."""
    return save({"latent": latent.detach().cpu().contiguous()}, _described(space))


def write(path: Path, latent: Tensor, space: LatentSpace) -> None:
    """Writes a latent in UNet scale. The file appears whole or not at all."""
    suffix = _suffix(path)
    latent = latent.detach().cpu().contiguous()
    if suffix == ".npy":
        _replace(path, lambda part: _save_npy(part, latent))
    elif suffix == ".latent":
        raw = space.unet.to(RAW, latent)
        tensors = {_COMFY_KEY: raw, _COMFY_VERSION: torch.zeros(0)}
        _replace(path, lambda part: save_file(tensors, part))
    else:
        _replace(path, lambda part: save_file({"latent": latent}, part, _described(space)))


def check_suffix(path: Path) -> None:
    """Raises `LatentFileError` for a name that no latent is written under."""
    _suffix(path)


def _described(space: LatentSpace) -> dict[str, str]:
    return {"space": space.id, "scale": "unet"}


def _metadata(content: bytes) -> dict[str, Any]:
    """What a .safetensors file that could be loaded says of itself."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__") or {})


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LatentFileError(f"{path}: latents are {', '.join(SUFFIXES)} files")
    return suffix


def _only(path: Path, tensors: dict[str, Tensor]) -> Tensor:
    if "latent" in tensors:
        return tensors["latent"]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise LatentFileError(
        f"{path} has {len(tensors)} tensors; one, or one named 'latent', expected"
    )


def _from_comfy(path: Path, tensors: dict[str, Tensor], space: LatentSpace) -> Tensor:
    if _COMFY_KEY not in tensors:
        raise LatentFileError(f"{path} has no {_COMFY_KEY!r}: it is no latent of ComfyUI's")
    latent = tensors[_COMFY_KEY].float()
    # Files without the mark are older and in SD1.5's UNet scale, whatever they hold.
    scale = RAW if _COMFY_VERSION in tensors else SD15.unet
    return scale.to(space.unet, latent)


def _check(path: Path, latent: Tensor, space: LatentSpace) -> None:
    shape = tuple(latent.shape)
    if not latent.is_floating_point():
        raise LatentFileError(f"{path} holds {latent.dtype}; floating point expected")
    if latent.dim() != 4:
        raise LatentFileError(
            f"{path} has {latent.dim()} axes, {shape}; a latent has four, (N, C, H, W): give one "
            "without a batch axis a first axis of 1"
        )
    if shape[1] != space.channels:
        raise LatentFileError(
            f"{path} has {shape[1]} channels; latents of {space.label} have {space.channels}"
        )
    if not latent.numel():
        raise LatentFileError(f"{path} is empty: {shape}")
    if not bool(torch.isfinite(latent).all()):
        raise LatentFileError(f"{path} has NaN or infinite values")


def _save_npy(path: Path, latent: Tensor) -> None:
    array = latent.float().numpy() if latent.dtype == torch.bfloat16 else latent.numpy()
    with path.open("wb") as file:
        np.save(file, array)


def _replace(path: Path, save: Callable[[Path], None]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save(part)
        os.replace(part, path)
    except OSError as error:
        raise LatentFileError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
