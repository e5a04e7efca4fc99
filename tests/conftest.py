"""Options of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from .misbehaving import MisbehavingServer, misbehaving_server

# The same examples at every run, so that a change is judged by what it changes. With
# HYPOTHESIS_PROFILE=default there are new ones each time: that is for finding.
settings.register_profile("stable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "stable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui",
        metavar="DIR",
        default=os.environ.get("LATENT_UPSCALE_WEBUI"),
        help="run tests/contract in this WebUI (AUTOMATIC1111, Forge or reForge), not in the "
        "double; LATENT_UPSCALE_WEBUI_ARGS adds to its command line, and "
        "LATENT_UPSCALE_WEBUI_PYTHON is its python (DIR/venv/bin/python)",
    )


@pytest.fixture(autouse=True)
def no_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the web, nor do processes that it starts: their proxy is not there."""
    for name, value in (
        ("HTTPS_PROXY", "http://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("NO_PROXY", "127.0.0.1,localhost"),
    ):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    """A web server on the loopback."""
    with misbehaving_server() as running:
        yield running
