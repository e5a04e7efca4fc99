"""Options of the tests."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui",
        metavar="DIR",
        default=os.environ.get("LATENT_UPSCALE_WEBUI"),
        help="run tests/contract in this WebUI (AUTOMATIC1111, Forge or reForge), not in the "
        "double; LATENT_UPSCALE_WEBUI_ARGS adds to its command line, and "
        "LATENT_UPSCALE_WEBUI_PYTHON is its python (DIR/venv/bin/python)",
    )
