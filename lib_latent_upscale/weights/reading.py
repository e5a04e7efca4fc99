"""Reading files of weights: .safetensors, and the .pth and .pt of torch.save."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError
from .files import PICKLES, SUFFIXES, is_web_page
from .pickles import LazyTensor, open_pickle


@dataclass(frozen=True)
class Weights:
    """What a file holds: the tensors, on the CPU, and what is said about them.

    metadata: those of a safetensors file, with those of the sidecar file over them.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Header:
    """The shapes of a file's tensors and what is said about them, read without the numbers."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read(path: Path) -> Weights:
    """The tensors of a file and what its metadata and its sidecar file say.

    Nothing in a pickle is run (see `pickles`). Raises `WeightsError`.
    """
    if _check_suffix(path) in PICKLES:
        with open_pickle(path) as file:
            state_dict = _unwrap(path, file.content)
            tensors = {key: file.tensor(lazy) for key, lazy in state_dict.items()}
        return Weights(tensors, sidecar(path))
    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Weights(tensors, {**(file.metadata() or {}), **sidecar(path)})
    except _SAFETENSORS_ERRORS as error:
        raise _damaged(path, error) from error


def read_header(path: Path) -> Header:
    """What `read` gives, but the tensors' shapes only. Raises `WeightsError`."""
    if _check_suffix(path) in PICKLES:
        with open_pickle(path) as file:
            state_dict = _unwrap(path, file.content)
        return Header({key: lazy.shape for key, lazy in state_dict.items()}, sidecar(path))
    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            keys = file.keys()
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
            return Header(shapes, {**(file.metadata() or {}), **sidecar(path)})
    except _SAFETENSORS_ERRORS as error:
        raise _damaged(path, error) from error


def sidecar(path: Path) -> dict[str, str]:
    """What the file NAME.json beside NAME.safetensors (.pth, .pt) says; {} if there is none.

    Raises `WeightsError` for one that is no JSON object.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f'{beside} is to be a JSON object such as {{"space": "sdxl"}}, and is not: {error}'
        ) from error
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}


def space_of_name(name: str) -> str | None:
    """The id of the latent space that a file's name tells of, or None."""
    for space, pattern in _SPACE_NAMES.items():
        if re.search(rf"(?<![a-z0-9.]){pattern}(?![a-z0-9])", name.lower()):
            return space
    return None


# As people and trainers write them into names: SDxl, sd_xl, sd15, SDv1, ... A wrong guess makes bad
# pictures, none makes a message: so v1 and v1.5 alone may be the upscaler's own version, 1.5 beside
# an x its factor, and FLUX.2 has other latents.
_SPACE_NAMES = {
    "sdxl": r"(sd[-_ ]?)?xl([-_ ]?v?1([._]0)?)?",
    "sd3": r"sd[-_ ]?v?3([-_. ]?5)?",
    "flux": r"flux([-_. ]?1)?(?![-_. ]?2(?![a-z0-9]))",
    "sd15": r"(sd[-_ ]?v?1([-_. ]?5)?|"
    r"(?<!x[-_ ])(?<!scale[-_ ])1[._]5(?![-_ ]?x(?![a-z0-9])|\.\d))",
}


# A number type that this torch does not have yet is an AttributeError.
_SAFETENSORS_ERRORS = (SafetensorError, OSError, ValueError, AttributeError)


def _check_suffix(path: Path) -> str:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightsError(f"{path}: weights are .safetensors, .pth or .pt files")
    return suffix


def _damaged(path: Path, error: Exception) -> WeightsError:
    what = "it is a web page" if is_web_page(path) else str(error)
    return WeightsError(f"{path} is damaged or no safetensors file: {what}; download it again")


def _unwrap(path: Path, content: Any) -> dict[str, LazyTensor]:
    """The state dict itself, where a trainer wrapped it."""
    for name in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    for key, value in content.items():
        if not isinstance(value, LazyTensor):
            raise WeightsError(
                f"{path}: {str(key)[:100]!r} is a {type(value).__name__}; a tensor expected"
            )
    return {str(key): value for key, value in content.items()}
