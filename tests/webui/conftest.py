"""Fixtures of the tests in the double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .double import VARIANTS, Double


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which weights are looked for first."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(folder))
    return folder


@pytest.fixture(params=VARIANTS)
def webui(request: pytest.FixtureRequest) -> Iterator[Double]:
    """The double of every host in turn, with the extension loaded."""
    with Double(variant=request.param) as double:
        yield double


@pytest.fixture
def a1111() -> Iterator[Double]:
    """The double of one host, where they do not differ."""
    with Double() as double:
        yield double
