"""A real WebUI, started for the contract tests and asked by HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..misbehaving import MisbehavingServer
from ..webui.double import EXTENSION, Job

_START_SECONDS = 300
_ANSWER_SECONDS = 300


class RealWebUI:
    """A WebUI in `folder`, with this extension linked in it, until `close`.

    scratch: an empty folder for its log, its models of ours and copies of its settings, so that
    the user's own stay as they are. mirror: the only place that it can fetch from.
    """

    def __init__(self, folder: Path, scratch: Path, mirror: MisbehavingServer) -> None:
        self.folder = folder.resolve()
        self.models = scratch / "models"
        self.models.mkdir()
        self.mirror = mirror
        self._log = scratch / "log.txt"
        self._link = self._link_extension()
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        arguments = shlex.split(os.environ.get("LATENT_UPSCALE_WEBUI_ARGS", ""))
        auth = arguments[arguments.index("--api-auth") + 1] if "--api-auth" in arguments else ""
        user, _, password = auth.partition(",")[0].partition(":")
        self.credentials = (user, password) if auth else None
        # No proxy between us and the loopback.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(scratch)
            self._checkpoints = self._ask("sd-models")
        except BaseException:
            self.close()
            raise

    def _link_extension(self) -> Path | None:
        """The link made for this run, or None if the extension is there anyhow."""
        extensions = self.folder / "extensions"
        if any(path.resolve() == EXTENSION for path in extensions.iterdir()):
            return None
        link = extensions / "latent-upscale-under-test"
        link.symlink_to(EXTENSION, target_is_directory=True)
        return link

    def _start(self, scratch: Path) -> None:
        own_python = self.folder / "venv/bin/python"
        python = os.environ.get("LATENT_UPSCALE_WEBUI_PYTHON", str(own_python))
        arguments = ["launch.py", "--api", "--port", str(self._port)]
        arguments += ["--latent-upscale-fetch", "none"]  # which preload.py must have declared
        for option, name in (("ui-settings-file", "config"), ("ui-config-file", "ui-config")):
            if (self.folder / f"{name}.json").exists():
                shutil.copy(self.folder / f"{name}.json", scratch)
            arguments += [f"--{option}", str(scratch / f"{name}.json")]
        arguments += shlex.split(os.environ.get("LATENT_UPSCALE_WEBUI_ARGS", ""))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "SD_WEBUI_RESTARTING": "1",  # opens no browser
            "LATENT_UPSCALE_MODELS": str(self.models),
            "LATENT_UPSCALE_MIRROR": self.mirror.base,
        }
        for name, value in (("https_proxy", "http://127.0.0.1:9"), ("no_proxy", "127.0.0.1")):
            environment[name] = environment[name.upper()] = value
        environment.pop("COMMANDLINE_ARGS", None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # A request in the wrong moment of a start kills it: only the log is watched, and, as
        # --nowebui writes that line before it listens, whether someone takes a connection.
        deadline = time.monotonic() + _START_SECONDS
        while not ("Startup time:" in self._printed() and _listens(self._port)):
            if self._process.poll() is not None:
                raise RuntimeError(f"the WebUI ended while starting:\n{self._printed()[-3000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the WebUI did not start:\n{self._printed()[-3000:]}")
            time.sleep(0.5)

    def close(self) -> None:
        """Ends the WebUI, and takes the extension's link away if it was made here."""
        if self._process is not None:
            for end, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
                try:
                    os.killpg(self._process.pid, end)
                    self._process.wait(seconds)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            print(f"log of the WebUI: {self._log}", file=sys.stderr)
        if self._link is not None:
            self._link.unlink()

    def _printed(self, start: int = 0) -> str:
        with self._log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def _ask(self, route: str, payload: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or with a payload to a POST, errors of the API included."""
        body = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"}
        if self.credentials is not None:
            known = base64.b64encode(":".join(self.credentials).encode()).decode()
            headers["Authorization"] = f"Basic {known}"
        request = urllib.request.Request(f"{self.url}/sdapi/v1/{route}", body, headers)
        try:
            with self._http.open(request, timeout=_ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def latent_upscale_modes(self) -> list[str]:
        return [mode["name"] for mode in self._ask("latent-upscale-modes")]

    def checkpoint(self, space: str) -> str:
        """The name of a checkpoint of that latent space; skips the test if there is none."""
        for one in self._checkpoints:
            if space in one["title"].lower():
                return one["title"]
        pytest.skip(f"no checkpoint here has {space} in its name")

    def choose(self, space: str) -> None:
        """Makes a checkpoint of that latent space the one that the page works with."""
        self.set_options({"sd_model_checkpoint": self.checkpoint(space)})

    def set_options(self, values: dict[str, Any]) -> None:
        """Changes settings, as the settings page does."""
        self._ask("options", values)

    def txt2img(self, payload: dict[str, Any], checkpoint: str = "sd15") -> Job:
        """A job by the API, with a checkpoint of that latent space."""
        settings = {"sd_model_checkpoint": self.checkpoint(checkpoint)}
        payload = {
            **payload,
            "hr_additional_modules": ["Use same choices"],  # Forge fails without it
            "override_settings": {**settings, **payload.get("override_settings", {})},
        }
        return self._run("txt2img", payload)

    def img2img(self, payload: dict[str, Any]) -> Job:
        """An img2img job by the API on a picture of 64x64."""
        picture, encoded = Image.new("RGB", (64, 64), "teal"), io.BytesIO()
        picture.paste("orange", (16, 16, 40, 48))
        picture.save(encoded, "png")
        settings = {"sd_model_checkpoint": self.checkpoint("sd15")}
        return self._run(
            "img2img",
            {
                **payload,
                "init_images": [base64.b64encode(encoded.getvalue()).decode()],
                "override_settings": {**settings, **payload.get("override_settings", {})},
            },
        )

    def _run(self, route: str, payload: dict[str, Any]) -> Job:
        mark = self._log.stat().st_size
        body = self._ask(route, payload)
        log = self._printed(mark)
        # A bar of sampling that got further than the 0 with which init draws the total.
        job = Job(log=log, first_pass=bool(re.search(r"\| *[1-9]\d*/\d+ \[", log)))
        if "images" not in body:
            job.error = str(body.get("errors") or body)
            return job
        job.infotexts = json.loads(body["info"])["infotexts"]
        for encoded in body["images"]:
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
                job.sizes.append(picture.size)
                job.pictures.append(picture.convert("RGB").tobytes())
        return job

    def progress(self) -> tuple[float, str | None]:
        """What the progress bar shows: how far it is, and its text."""
        answer = self._ask("progress?skip_current_image=true")
        return answer["progress"], answer["textinfo"]

    def interrupt(self) -> None:
        self._ask("interrupt", {})

    def skip(self) -> None:
        self._ask("skip", {})

    def xyz(self, payload: dict[str, Any], axis: str, values: list[str]) -> Job:
        """The X/Y/Z script along an axis; its first picture is the grid."""
        (script,) = (
            one
            for one in self._ask("script-info")
            if one["name"].lower() == "x/y/z plot" and not one["is_img2img"]
        )
        arguments = []
        for given in script["args"]:
            label, value = given["label"], given["value"]
            if label == "X type":
                value = given["choices"].index(axis)
            elif label in ("Y type", "Z type"):
                value = 0
            elif label == "X values":  # twice: a line of text, and a choice of several
                value = values if isinstance(given["choices"], list) else ""
            elif label == "Include Sub Images":
                value = True
            elif label == "Draw legend":  # it would make the grid larger
                value = False
            arguments.append(value)
        return self.txt2img({**payload, "script_name": script["name"], "script_args": arguments})


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
