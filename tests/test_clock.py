"""Seconds are taken when a device is done."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from lib_latent_upscale.clock import now

WORK = 0.02


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_work_that_a_device_was_given_is_in_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that does what it was given while it is waited for."""
    device, of = torch.device(kind, 0), []

    def synchronize(*devices: torch.device) -> None:
        of.extend(devices)
        time.sleep(WORK)

    monkeypatch.setattr(torch, kind, SimpleNamespace(synchronize=synchronize), raising=False)
    started = time.perf_counter()
    assert now(device) - started >= WORK
    assert of == ([] if kind == "mps" else [device])


def test_a_cpu_is_done_at_once() -> None:
    before, between, after = time.perf_counter(), now(torch.device("cpu")), time.perf_counter()
    assert before <= between <= after
