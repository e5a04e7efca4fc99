"""Half precision is safe: real weights on a real latent, decoded, against float32."""

from __future__ import annotations

import math

import pytest
import torch

from lib_latent_upscale import latent_files, load
from lib_latent_upscale.demo import ASSETS
from lib_latent_upscale.preview import load_preview_decoder
from lib_latent_upscale.spaces import SD15

from .published import SHARED

CITY96 = SHARED / "reference" / "city96"
MODELS = [
    "bundled-sd15",
    *(f"latent-upscaler-v2.1_SDv1-x{x}.safetensors" for x in (1.25, 1.5, 2.0)),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_is_not_to_be_seen(model: str, dtype: torch.dtype) -> None:
    file = CITY96 / model
    if model.endswith(".safetensors") and not file.is_file():
        pytest.skip(f"{file} is not beside this clone")
    upscaler = load(file if file.is_file() else model)
    latent = latent_files.read(ASSETS / "astronaut-256.safetensors", SD15)
    side = int(latent.shape[-1] * (upscaler.network.scale or 2))
    decoder = load_preview_decoder(SD15)
    if dtype == torch.float16 and not _cpu_has(dtype):
        pytest.skip("this torch has no convolutions in float16 on the CPU")
    with torch.no_grad():
        exact = decoder(upscaler(latent, (side, side)))
        half = decoder(upscaler.copied(dtype)(latent, (side, side)))
    assert -10 * math.log10(float((half - exact).square().mean())) > 45  # dB; 55 to 83 measured


def _cpu_has(dtype: torch.dtype) -> bool:
    try:
        torch.nn.functional.conv2d(*torch.zeros(2, 1, 1, 3, 3, dtype=dtype))
    except RuntimeError:
        return False
    return True
