"""Where to compute, by name."""

from __future__ import annotations

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
