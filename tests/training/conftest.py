"""What tests of training share, and torchvision beside a torch of another build."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


def declare_missing_operators() -> torch.library.Library | None:
    """Lets torchvision be imported where its compiled part does not load into this torch.

    Its import describes two of its compiled operators to torch, which fails where they are not
    there. Declared they are enough of that: timm and lpips use none of them. Returns what keeps
    the declarations alive, or None where nothing is missing.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    compiled = [*Path(spec.origin).parent.glob("_C*.so"), *Path(spec.origin).parent.glob("_C*.pyd")]
    try:
        for library in compiled:
            torch.ops.load_library(library)
        if compiled:
            return None
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Here and not in a fixture: test files ask for timm and lpips while they are collected.
_DECLARED = declare_missing_operators()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors: where other processes run too, threads wait longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
