"""What README.md says of the API, run as it stands there, but for the port."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from .double import EXTENSION, Double
from .served import application, served

README = (EXTENSION / "README.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:(?:^    .*)?\n)+", README, re.M)]
CURLS = [block.strip() for block in BLOCKS if block.strip().startswith("curl ")]
PYTHONS = [block for block in BLOCKS if "7860" in block and "import " in block]


@pytest.fixture
def port(a1111: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((96, 64)).save("small.png")
    # No download is to go further than to its beginning.
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", "http://127.0.0.1:9/")
    with served(application(a1111)) as url:
        yield url.rpartition(":")[2]


def test_there_are_examples() -> None:
    assert len(CURLS) == 2 and len(PYTHONS) == 2


@pytest.mark.parametrize("command", CURLS, ids=lambda text: text.split()[1])
def test_curl(port: str, command: str) -> None:
    _, url, option, header, data, body = shlex.split(command)
    assert (option, header, data) == ("-H", "Content-Type: application/json", "-d")
    session = requests.Session()
    answer = session.post(url.replace("7860", port), json=json.loads(body), timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("code", PYTHONS, ids=["picture", "webuiapi"])
def test_python(port: str, code: str) -> None:
    exec(compile(code.replace("7860", port), "README.md", "exec"), {})
    (written,) = (path for path in Path().glob("*.png") if path.name != "small.png")
    with Image.open(written) as picture:
        assert picture.size == {"large.png": (192, 128)}.get(written.name, (1024, 1024))
