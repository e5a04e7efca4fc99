"""The rules of the house: which way imports point, and that nothing of torch is replaced."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "lib_latent_upscale"
FILES = sorted(LIBRARY.rglob("*.py"))

# A room may import from itself and from rooms of a smaller number.
FLOORS = {
    "architectures": 0,
    "spaces": 0,
    "resample": 0,
    "tiling": 0,
    "clock": 0,
    "preview": 1,
    "catalog": 1,
    "memory": 1,
    "recording": 1,
    "compiling": 2,
    "preferences": 2,
    "weights": 2,
    "latent_files": 2,
    "calls": 2,
    "inference": 3,
    "cache": 4,
    "engine": 5,
    "shelf": 5,
    "downloads": 6,
    "console": 3,
    "demo": 4,
    "model_commands": 6,
    "cli": 7,
    "first_launch": 8,
    "__main__": 8,
    "__init__": 8,
    "webui": 9,
    "training": 9,
    "bench": 9,
}


def room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """The absolute names of the modules that a file imports."""
    package = ("lib_latent_upscale", *path.relative_to(LIBRARY).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found += [f"{module}.{name.name}" for name in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "lib_latent_upscale" or len(parts) < 2:
            continue
        there = parts[1] if parts[1] in FLOORS else "__init__"
        assert there == here or FLOORS[there] < FLOORS[here], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_webui_package_imports_the_host(path: Path) -> None:
    if room(path) == "webui":
        return
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"modules", "modules_forge", "backend", "ldm_patched", "gradio"}


def test_importing_the_library_is_light() -> None:
    """No host, no training, no picture library, and no network built."""
    code = (
        "import sys, lib_latent_upscale, lib_latent_upscale.cache\n"
        "heavy = {'PIL', 'gradio', 'modules', 'lib_latent_upscale.training'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import gc, torch\n"
        "assert not any(isinstance(x, torch.nn.Module) for x in gc.get_objects())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_files_stay_readable() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path
