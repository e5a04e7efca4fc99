"""Where to compute, by name, and how the CPU's memory is kept."""

from __future__ import annotations

import ctypes
import os

import torch

from .errors import TrainingError


def find(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1", "mps" and so on, or "auto": a GPU if there is one.

    Raises `TrainingError` where this torch has none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"--device {name}: this torch has no device of that name: {reason}"
        ) from error
    return device


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Has glibc keep what tensors free, for the next ones; False where there is no glibc.

    Else it gives each large tensor's memory back to the system, which has to clear it for the next
    one: TAESD's encoder takes twice the processor time (0.145 s in place of 0.076 s for a picture
    of 320 pixels in bfloat16, one thread of an Intel Xeon). It is for the whole process, so it is
    for commands, not for a library in someone else's process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
