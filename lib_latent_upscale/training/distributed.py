"""One process or many: torchrun and accelerate start them, this lets them agree.

Every process computes the gradient of its rows of the batch; averaged over all processes, it is
that of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from . import devices

_BUCKET = 32 << 20
"""Bytes that are sent at a time."""


@dataclass(frozen=True)
class Process:
    """This process: its number, how many there are, and where it computes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and the log."""
        return self.rank == 0


def start(device: str = "auto", backend: str = "auto") -> Process:
    """Joins the others where torchrun or accelerate started several processes.

    device: "cpu", "cuda", "cuda:N", "mps", or "auto". Under torchrun each process takes the GPU of
        its local number.
    backend: "nccl", "gloo" or "auto": nccl on GPUs.
    """
    world, rank = (int(os.environ.get(name, default)) for name, default in _WORLD)
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)) if world > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not distributed.is_initialized():
        if backend == "auto":
            backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(hours=1))
    return Process(chosen, rank, world)


_WORLD = (("WORLD_SIZE", 1), ("RANK", 0))


def stop() -> None:
    """Leaves the others."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    device = devices.find(name)
    if device.type == "cuda" and device.index is None:
        count = torch.cuda.device_count()
        return torch.device("cuda", (local_rank or 0) % count)
    return device


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Puts the mean over all processes into each tensor; all must have the same ones."""
    if not distributed.is_initialized():
        return
    world = distributed.get_world_size()
    for bucket in _buckets(list(tensors)):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        distributed.all_reduce(flat)
        flat /= world
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """As `average`, the gradients; a parameter without one has none in any process."""
    average([one.grad for one in parameters if one.grad is not None])


def share_first(network: nn.Module) -> None:
    """Gives all processes the weights of the first one."""
    if distributed.is_initialized():
        for tensor in network.state_dict().values():
            sent = tensor.contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def average_norms(network: nn.Module) -> None:
    """Averages the running statistics of batch norms, which every process has of its own rows."""
    average(
        buffer
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    )


def wait() -> None:
    """Until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """Of one type each, and not too large."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket
