"""Jobs for the double, and what to look for in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.catalog import CATALOG

from .double import Job

NEURAL = "Latent (neural)"
BUNDLED = CATALOG["bundled-sd15"]
CITY96 = CATALOG["city96-x2-sd15"]

HIRES: dict[str, Any] = dict(prompt="a cat", seed=1, steps=2, width=64, height=64)
HIRES |= dict(enable_hr=True, hr_scale=2, hr_upscaler=NEURAL, denoising_strength=0.7)


def done(job: Job) -> Job:
    assert job.error is None
    return job


def runs(job: Job) -> list[str]:
    """The names of the models whose networks ran in the job."""
    return re.findall(r"Latent upscale: (\S+), ", job.log)


def bicubic(latent: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(latent, size=size, mode="bicubic", antialias=True)


def random_city96(folder: Path, seed: int = 0) -> Path:
    """Random weights under a published name."""
    torch.manual_seed(seed)
    path = folder / CITY96.file.name
    save_file(City96(channels=4, dim=8, depth=1, scale=2.0).state_dict(), path)
    return path
