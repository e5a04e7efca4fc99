"""What the hosts' other devices lack: no network computes with it, or there is another way."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lib_latent_upscale.architectures import from_state_dict
from lib_latent_upscale.architectures.layers import kernels, spectral
from lib_latent_upscale.inference import LatentUpscaler
from lib_latent_upscale.spaces import SD15

from . import published

NETWORKS = ["DAT6x6", "SwinFIR4x6", "CRAFT7x6", "DRCTFIR12x6", "city96_x1.25", "ttl"]

_OPERATIONS = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"


@cache
def declarations() -> dict[str, str]:
    """What torch declares of each of its operations, and where it has kernels for it."""
    text = _OPERATIONS.read_text(encoding="utf-8")
    blocks = text.split("\n- func: ")[1:]
    return {block.partition("(")[0]: block for block in blocks}


def on_mps(operation: str) -> bool:
    """Whether this torch has it on MPS: a kernel, or one made up of others."""
    block = declarations()[operation]
    delegate = re.search(r"structured_delegate: (\S+)", block)
    if delegate is not None:
        return on_mps(delegate[1])
    return "dispatch:" not in block or "MPS" in block or "Composite" in block


class Watched(TorchDispatchMode):
    """Notes what is computed on tensors of the latent's way."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.dtypes: set[torch.dtype] = set()
        self.half_transforms = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.removesuffix(".default")
        tensors = [x for x in tree_flatten((args, result))[0] if isinstance(x, Tensor)]
        self.names.add(name)
        self.dtypes |= {x.dtype for x in tensors}
        if "fft" in name:
            self.half_transforms += any(x.dtype in (torch.float16, torch.bfloat16) for x in tensors)
        return result


def small(name: str) -> LatentUpscaler:
    network = from_state_dict(published.small_state_dict(name), **published.told(name))
    return LatentUpscaler(network.requires_grad_(False), SD15, SD15.unet, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_with_what_mps_has(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any size but the multiple that the windows want, so that what pads is in it."""
    monkeypatch.setattr(kernels, "_work", lambda dtype: False)  # those are the CPU's
    upscaler, x = small(name).copied(dtype), torch.randn(1, 4, 18, 21).to(dtype)
    upscaler._passes(x, (36, 42), None)  # the constants
    watched = Watched()
    with torch.no_grad(), watched:
        upscaler._passes(x, (36, 42), None)
    # MPS has another fused attention. Where it has no transforms, the CPU does them: see below.
    others = {
        name for name in watched.names if not name.startswith(("_scaled_dot_product", "_fft"))
    }
    assert not {name for name in others if not on_mps(name)}
    assert torch.float64 not in watched.dtypes
    assert torch.complex128 not in watched.dtypes and torch.complex32 not in watched.dtypes
    assert not watched.half_transforms


def test_what_mps_lacks_is_known() -> None:
    assert on_mps("gelu") and on_mps("index_select") and on_mps("_to_copy")
    assert not on_mps("linalg_eig")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_without_transforms_has_them_done_on_the_cpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler, x = small("SwinFIR4x6").copied(dtype), torch.randn(1, 4, 16, 16).to(dtype)
    expected = upscaler._passes(x, (32, 32), None)
    asked: list[torch.device] = []

    def nowhere(device: torch.device) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr(spectral, "_device_for", nowhere)
    assert torch.equal(upscaler._passes(x, (32, 32), None), expected)
    assert len(asked) >= 2  # there and back


def test_where_a_device_has_transforms_is_asked_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def rfft2(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        raise NotImplementedError("aten::_fft_r2c is not implemented")

    spectral._device_for.cache_clear()
    monkeypatch.setattr(torch.fft, "rfft2", rfft2)
    device = torch.device("meta")
    assert spectral._device_for(device) == torch.device("cpu")
    assert spectral._device_for(device) == torch.device("cpu")
    assert len(calls) == 1
    spectral._device_for.cache_clear()
