"""The host that the contract tests ask: the double in its variants, or a real WebUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import save_file

from ..misbehaving import MisbehavingServer, misbehaving_server
from ..webui.double import VARIANTS, Double, Job
from ..webui.served import application, served
from .real import RealWebUI


class Host(Protocol):
    """What a contract test may ask of a WebUI."""

    models: Path
    """A folder in which the extension looks for weights before its own, and fetches to."""
    mirror: MisbehavingServer
    """Where it fetches from; nothing else can be reached."""
    credentials: tuple[str, str] | None
    """User and password of its API."""

    @property
    def url(self) -> str:
        """The address of its API, without an ending slash."""

    def latent_upscale_modes(self) -> list[str]: ...

    def checkpoint(self, space: str) -> str:
        """The name of a checkpoint of that latent space; skips the test if there is none."""

    def txt2img(self, payload: dict[str, Any], checkpoint: str = "sd15") -> Job: ...

    def progress(self) -> tuple[float, str | None]:
        """What the progress bar shows: how far it is, and its text."""

    def interrupt(self) -> None: ...

    def skip(self) -> None: ...

    def img2img(self, payload: dict[str, Any]) -> Job:
        """An img2img job on some picture of 64x64."""

    def xyz(self, payload: dict[str, Any], axis: str, values: list[str]) -> Job:
        """The X/Y/Z script along an axis; its first picture is the grid."""


class _DoubleHost:
    def __init__(self, variant: str, models: Path, mirror: MisbehavingServer) -> None:
        self.models, self.mirror = models, mirror
        self.double = Double(variant=variant)
        key = "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"
        file = self.double.checkpoint_files["sdxl"] = models / "checkpoint.safetensors"
        save_file({key: torch.zeros(1)}, file)
        self.credentials = ("user", "secret")
        self.double.shared.cmd_opts.api_auth = ":".join(self.credentials)
        self._exits = ExitStack()
        self._exits.callback(self.double.close)

    @cached_property
    def url(self) -> str:
        return self._exits.enter_context(served(application(self.double)))

    def close(self) -> None:
        self._exits.close()

    def latent_upscale_modes(self) -> list[str]:
        return self.double.latent_upscale_modes()

    def checkpoint(self, space: str) -> str:
        return space

    def txt2img(self, payload: dict[str, Any], checkpoint: str = "sd15") -> Job:
        state = self.double.shared.state
        state.interrupted = state.skipped = False  # as where a job begins in the hosts
        settings = {"sd_model_checkpoint": checkpoint, **payload.get("override_settings", {})}
        return self.double.txt2img({**payload, "override_settings": settings})

    def img2img(self, payload: dict[str, Any]) -> Job:
        latent = self.double.noise([1], 8, 8)
        return self.double.img2img({"init_images": [latent], "override_settings": {}, **payload})

    def progress(self) -> tuple[float, str | None]:
        return self.double.progress()

    def interrupt(self) -> None:
        self.double.interrupt()

    def skip(self) -> None:
        self.double.skip()

    def xyz(self, payload: dict[str, Any], axis: str, values: list[str]) -> Job:
        return self.double.xyz({"override_settings": {}, **payload}, axis, values)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host" in metafunc.fixturenames:
        real = metafunc.config.getoption("--webui")
        hosts = ["webui"] if real else [f"double-{variant}" for variant in VARIANTS]
        metafunc.parametrize("host", hosts, indirect=True, scope="module")


@pytest.fixture(scope="session")
def mirror() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as running:
        yield running


@pytest.fixture(scope="session")
def webui(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mirror: MisbehavingServer,
) -> Iterator[RealWebUI]:
    """The real WebUI, started once for all modules of contracts."""
    folder = Path(request.config.getoption("--webui"))
    real = RealWebUI(folder, tmp_path_factory.mktemp("webui"), mirror)
    yield real
    real.close()


@pytest.fixture(scope="module")
def host(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mirror: MisbehavingServer,
) -> Iterator[Host]:
    if request.param == "webui":
        yield request.getfixturevalue("webui")
        return
    with pytest.MonkeyPatch.context() as patch:
        models = tmp_path_factory.mktemp("models")
        patch.setenv("LATENT_UPSCALE_MODELS", str(models))
        patch.setenv("LATENT_UPSCALE_MIRROR", mirror.base)
        double = _DoubleHost(request.param.removeprefix("double-"), models, mirror)
        yield double
        double.close()
