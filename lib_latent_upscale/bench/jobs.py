"""What a second job with the same model costs less than the first: no load, no copy, no constant
computed anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..architectures.layers import constants, windows
from ..cache import UpscalerCache
from ..engine import Engine
from .measure import timed
from .networks import Model


@dataclass(frozen=True)
class Job:
    """One job: from the file's path to the larger latent."""

    ms: float
    loads: int
    """Of the file."""
    copies: int
    """Made of the model, for a device or precision."""
    constants: int
    """Computed: position biases, masks, folded norms, window orders."""

    def __str__(self) -> str:
        return f"{self.ms:.0f} ({self.loads}/{self.copies}/{self.constants})"


def two_jobs(model: Model, size: int, device: str, dtype: torch.dtype) -> tuple[Job, Job]:
    """A first job with a model that is nowhere yet, and another one after it."""
    latent = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    network = model.build()
    told = {"space": "sd15"} | ({} if network.scale is None else {"scale": str(network.scale)})
    cache = UpscalerCache()
    engine = Engine(cache)
    windows.forget()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save_file({key: x.contiguous() for key, x in network.to_state_dict().items()}, path, told)
        del network

        def job() -> Tensor:
            return engine.upscale(cache.get(path), latent, (2 * size, 2 * size), dtype=dtype)

        jobs = _counted(job, cache), _counted(job, cache)
        cache.clear()  # the file may be mapped
    return jobs


def _counted(job: Callable[[], Tensor], cache: UpscalerCache) -> Job:
    before, computed = cache.statistics(), constants.computed() + windows.computed()
    ms = 1e3 * timed(job).wall
    after = cache.statistics()
    return Job(
        ms,
        after.loads - before.loads,
        after.copies - before.copies,
        constants.computed() + windows.computed() - computed,
    )
