"""A double of the WebUI: as much of a host as a hires pass and an extension see of it.

It has no diffusion model. The first pass is seeded noise, the second adds a little more, and a
picture is its latent's mean, so that sizes, order, types and infotext can be checked in
milliseconds. What it takes from AUTOMATIC1111, Forge and reForge are facts: which names an
extension finds, when they are called, and with what. The contract tests hold it to a real one.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

EXTENSION = Path(__file__).resolve().parents[2]

VARIANTS = ("a1111", "forge", "reforge")

# Channels, factor and shift of the checkpoints' latents; "unknown" is an SDXL with another VAE.
CHECKPOINTS = {
    "sd15": (4, 0.18215, 0.0),
    "sdxl": (4, 0.13025, 0.0),
    "sd3": (16, 1.5305, 0.0609),
    "flux": (16, 0.3611, 0.1159),
    "unknown": (32, 0.13025, 0.0),
}

_OWN_MODES = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
}


@dataclass
class Job:
    """What became of a job: of this double's, or of a real WebUI's."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) of each picture."""
    pictures: list[bytes] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    error: str | None = None
    first_pass: bool = False
    """Whether anything was sampled."""
    log: str = ""
    """What was printed meanwhile."""


class Decoded(list):
    """What a hires pass returns: decoded pictures, in a class that says that they are."""


class OptionInfo:
    """A setting, as extensions describe it to the host."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        *,
        section: tuple[str, ...] | None = None,
        refresh: Callable[[], None] | None = None,
        infotext: str | None = None,
        restrict_api: bool = False,
        **_: Any,
    ) -> None:
        self.default, self.label, self.component = default, label, component
        self.component_args, self.section, self.infotext = component_args, section, infotext
        self.restrict_api, self.refresh = restrict_api, refresh
        self.comment_after = ""

    def info(self, text: str) -> OptionInfo:
        self.comment_after += f"<span class='info'>({text})</span>"
        return self

    def needs_reload_ui(self) -> OptionInfo:
        return self


class Options:
    """The host's settings; attributes are their values."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def set(self, key: str, value: Any, is_api: bool = False) -> None:
        if self.data.get(key) == value:
            return
        info = self.data_labels[key]  # as in the hosts, an unknown one is a KeyError
        if not (is_api and info.restrict_api):
            self.data[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in ("data", "data_labels") or key not in self.data:
            raise AttributeError(key)
        return self.data[key]


class _Txt2Img:
    """A txt2img job, with the two methods that extensions of the hires pass wrap."""

    host: Double

    # The payload's keys, as the API has them
    prompt, seed, steps, width, height = "", 1, 20, 512, 512
    batch_size, n_iter = 1, 1
    enable_hr, hr_scale, hr_resize_x, hr_resize_y = False, 2.0, 0, 0
    hr_upscaler: str | None = None
    hr_checkpoint_name: str | None = None
    denoising_strength = 0.75
    firstpass_image: Tensor | None = None  # of the quick "upscale" button; here a latent
    # What init finds
    latent_scale_mode: dict[str, Any] | None = None
    hr_checkpoint_info: Any = None
    hr_upscale_to_x = hr_upscale_to_y = truncate_x = truncate_y = 0

    def __init__(self, **payload: Any) -> None:
        self.override_settings: dict[str, Any] = {}
        self.extra_generation_params: dict[str, Any] = {}
        vars(self).update(payload)

    @property
    def sd_model(self) -> Any:
        """Whatever is loaded now: from the hires checkpoint's loading on, that one."""
        return self.host.shared.sd_model

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        if not self.enable_hr:
            return
        extra, modes = self.extra_generation_params, self.host.shared.latent_upscale_modes
        if self.hr_checkpoint_name not in (None, "Use same checkpoint"):
            self.hr_checkpoint_info = self.host.checkpoint_info(self.hr_checkpoint_name)
            extra["Hires checkpoint"] = self.hr_checkpoint_name
        self.latent_scale_mode = modes.get(self.hr_upscaler or "Latent")
        if self.latent_scale_mode is None and self.hr_upscaler != "Lanczos":
            raise RuntimeError(f"could not find upscaler named {self.hr_upscaler}")
        wide, high = self.hr_resize_x, self.hr_resize_y
        if wide or high:
            extra["Hires resize"] = f"{wide}x{high}"
            factor = max(wide / self.width, high / self.height)
            # The picture covers the size asked for; what stands over is cut off the latent.
            self.hr_upscale_to_x = round(self.width * factor)
            self.hr_upscale_to_y = round(self.height * factor)
            if wide and high:
                self.truncate_x = (self.hr_upscale_to_x - wide) // 8
                self.truncate_y = (self.hr_upscale_to_y - high) // 8
        else:
            extra["Hires upscale"] = self.hr_scale
            self.hr_upscale_to_x = int(self.width * self.hr_scale)
            self.hr_upscale_to_y = int(self.height * self.hr_scale)
        extra["Denoising strength"] = self.denoising_strength
        if self.hr_upscaler is not None:
            extra["Hires upscaler"] = self.hr_upscaler

    def sample(self, seeds: list[int]) -> Any:
        host = self.host
        if self.firstpass_image is not None and self.enable_hr:
            latent = self.firstpass_image.to(host.dtype_vae)
        else:
            latent = host.noise(seeds, self.height // 8, self.width // 8)
            host.sampled_first = True
            host.after_first_pass()
            if not self.enable_hr:
                return latent
        if self.hr_checkpoint_info is not None:
            host.load_checkpoint(self.hr_checkpoint_info.name)
        return self.sample_hr_pass(latent, None, seeds, None, 0, [self.prompt])

    def sample_hr_pass(
        self,
        samples: Any,
        decoded_samples: Any,
        seeds: list[int],
        subseeds: Any,
        subseed_strength: float,
        prompts: list[str],
    ) -> Any:
        host = self.host
        if host.shared.state.interrupted:
            return samples
        size = (self.hr_upscale_to_y // 8, self.hr_upscale_to_x // 8)
        mode = self.latent_scale_mode
        if mode is not None:
            host.before_hires += [samples[index] for index in range(samples.shape[0])]
            samples = torch.nn.functional.interpolate(
                samples, size=size, mode=mode["mode"], antialias=mode["antialias"]
            )
        else:  # an upscaler of pictures
            samples = samples.repeat_interleave(2, 2).repeat_interleave(2, 3)
        top, left = self.truncate_y // 2, self.truncate_x // 2
        samples = samples[
            :,
            :,
            top : samples.shape[2] - (self.truncate_y + 1) // 2,
            left : samples.shape[3] - (self.truncate_x + 1) // 2,
        ]
        host.hires_inputs.append(samples)
        noise = host.noise(seeds, *samples.shape[-2:]).to(samples.dtype)
        result = samples + noise * self.denoising_strength
        return Decoded(result)


class _Img2Img:
    """An img2img job, as far as its latent is resized. `init_images` are latents here."""

    host: Double

    prompt, seed, steps, width, height = "", 1, 20, 512, 512
    batch_size, n_iter, resize_mode, denoising_strength = 1, 1, 0, 0.75
    init_latent: Any = None

    def __init__(self, **payload: Any) -> None:
        self.override_settings: dict[str, Any] = {}
        self.extra_generation_params: dict[str, Any] = {}
        vars(self).update(payload)

    sd_model = _Txt2Img.sd_model

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        self.init_latent = self.init_images[0]  # type: ignore[attr-defined]
        self.host.previewed = self.init_latent + 0  # as a preview would see it
        if self.resize_mode == 3:
            size = (self.height // 8, self.width // 8)
            self.init_latent = torch.nn.functional.interpolate(
                self.init_latent, size=size, mode="bilinear"
            )

    def sample(self, seeds: list[int]) -> Any:
        noise = self.host.noise(seeds, *self.init_latent.shape[-2:])
        return Decoded(self.init_latent + noise * self.denoising_strength)


class Double:
    """A running WebUI with the extension in it, until `close`.

    extension: its folder. variant: which host's names a checkpoint has. nowebui: no interface
    is made, so that nobody asks for settings. plots: whether the host has its X/Y/Z script.
    """

    def __init__(
        self,
        extension: Path = EXTENSION,
        variant: str = "a1111",
        checkpoint: str = "sd15",
        nowebui: bool = False,
        load: bool = True,
        plots: bool = True,
    ) -> None:
        self.extension, self.variant, self.nowebui = extension, variant, nowebui
        self.plots = plots
        self.checkpoint_files: dict[str, Path] = {}
        self.dtype_vae, self.autocast = torch.float32, False
        self.before_hires: list[Tensor] = []
        """The latents that "before hires" pictures were made from."""
        self.hires_inputs: list[Tensor] = []
        """The latents that the second passes began with."""
        self.sampled_first = False
        self.after_first_pass: Callable[[], None] = lambda: None
        self._callbacks: dict[str, list[Callable[..., Any]]] = {}
        self._saved = {name: sys.modules.pop(name) for name in _shared_names()}
        self.job_class = self._install()
        self.shared.opts.add_option("sd_model_checkpoint", OptionInfo(checkpoint))
        self.load_checkpoint(checkpoint)
        try:
            if load:
                self.load_extension()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Double:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Puts sys.modules back as it was."""
        for name in _shared_names():
            del sys.modules[name]
        sys.modules.update(self._saved)

    def _install(self) -> type:
        """Makes the host's modules; returns the class of txt2img jobs."""
        # A class of its own, with the methods in it, for each double: extensions change them.
        own = {"init": _Txt2Img.init, "sample_hr_pass": _Txt2Img.sample_hr_pass, "host": self}
        job_class = type("StableDiffusionProcessingTxt2Img", (_Txt2Img,), own)
        self.shared = self._module(
            "modules.shared",
            latent_upscale_modes={name: dict(mode) for name, mode in _OWN_MODES.items()},
            opts=Options(),
            OptionInfo=OptionInfo,
            sd_upscalers=[SimpleNamespace(name="Lanczos")],
            state=SimpleNamespace(
                interrupted=False,
                skipped=False,
                textinfo=None,
                job="",
                job_count=-1,
                job_no=0,
                sampling_steps=0,
                sampling_step=0,
            ),
            cmd_opts=SimpleNamespace(nowebui=self.nowebui, api_auth=None),
            sd_model=None,
        )
        self.shared.state.begin, self.shared.state.end = self._begin, self._end
        own = {"init": _Img2Img.init, "sample": _Img2Img.sample, "host": self}
        self.img2img_class = type("StableDiffusionProcessingImg2Img", (_Img2Img,), own)
        self.processing = self._module(
            "modules.processing",
            StableDiffusionProcessingTxt2Img=job_class,
            StableDiffusionProcessingImg2Img=self.img2img_class,
            decode_latent_batch=self._decode,
        )
        self._module("modules.sd_samplers_common", images_tensor_to_samples=self._encode)
        self._module("modules.images", resize_image=_resize_image)
        load = "forge_model_reload" if self.variant == "forge" else "reload_model_weights"
        self._module("modules.sd_models", **{load: lambda: None})
        self.queue_lock = threading.Lock()  # as the hosts': not to be taken twice
        self._module("modules.call_queue", queue_lock=self.queue_lock)
        self.tasks: list[tuple[str, str]] = []
        """What was told of tasks, as (event, id)."""
        self._module(
            "modules.progress",
            create_task_id=lambda kind: f"task({kind}-1)",
            add_task_to_queue=lambda id: self.tasks.append(("queued", id)),
            start_task=lambda id: self.tasks.append(("started", id)),
            finish_task=lambda id: self.tasks.append(("finished", id)),
        )
        device = torch.device("cpu")
        self._module(
            "modules.devices",
            torch_gc=lambda: None,
            get_optimal_device=lambda: device,
            device=device,
            dtype=torch.float32,
            autocast=contextlib.nullcontext,
            NansException=ArithmeticError,
        )

        self._module("modules.lowvram", is_enabled=lambda model: False)

        def callbacks(name: str) -> Callable[..., None]:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda call, **_: self._callbacks.setdefault(name, []).append(call)

        self._module("modules.script_callbacks", __getattr__=callbacks)
        self.scripts = self._module("modules.scripts", scripts_data=[])
        self._module("modules.ui_common", create_refresh_button=self._create_refresh_button)

        def component(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        components = {name: type(name, (), {}) for name in ("DropdownMulti", "ToolButton")}
        self._module("modules.ui_components", **components)
        version = "4.40.0" if self.variant == "forge" else "3.41.2"
        self._module("gradio", __getattr__=component, __version__=version, update=dict)
        self._module("gradio.context", Context=SimpleNamespace(root_block=_Blocks()))
        return job_class

    def _module(self, name: str, **content: Any) -> Any:
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(content)
        package, _, child = name.rpartition(".")
        if package:
            parent = sys.modules.setdefault(package, ModuleType(package))
            vars(parent).setdefault("__path__", [])
            setattr(parent, child, module)
        return module

    def in_dropdown(self) -> list[str]:
        """The upscalers that the page offers for the hires pass."""
        choices = self.dropdown.choices
        return [one[1] if isinstance(one, tuple) else one for one in choices]

    def load_page(self) -> None:
        """What a browser does that comes to the page, or reloads it."""
        for run, (component,) in sys.modules["gradio.context"].Context.root_block.loads:
            vars(component).update(run())

    # The extension's life

    def load_extension(self) -> None:
        """Imports the extension's scripts as new modules, and makes the interface."""
        self._callbacks.clear()
        before = list(sys.path)
        sys.path.insert(0, str(self.extension))
        self._load_own_scripts()
        try:
            for script in sorted((self.extension / "scripts").glob("*.py")):
                spec = importlib.util.spec_from_file_location(script.name, script)
                assert spec is not None and spec.loader is not None
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
        finally:
            sys.path[:] = before
        self._call("on_before_ui")  # with --nowebui too
        if not self.nowebui:
            self._make_page()

    def _load_own_scripts(self) -> None:
        """Those of the host, which come first, as modules made anew."""
        axis = type("AxisOption", (SimpleNamespace,), {"__init__": _init_axis})
        plot = SimpleNamespace(AxisOption=axis, axis_options=[axis("Nothing", str, None)])
        found = [SimpleNamespace(path="/webui/scripts/xyz_grid.py", module=plot)]
        self.scripts.scripts_data[:] = found if self.plots else []

    @property
    def axes(self) -> dict[str, Any]:
        """The axes of the X/Y/Z plot, by label."""
        plots = [script.module for script in self.scripts.scripts_data]
        return {axis.label: axis for plot in plots for axis in plot.axis_options}

    def _make_page(self) -> None:
        self.refresh_buttons: dict[str, Callable[[], None]] = {}
        self._call("on_ui_settings")
        upscalers = [upscaler.name for upscaler in self.shared.sd_upscalers]
        names = [*self.shared.latent_upscale_modes, *upscalers]
        # gradio 4 has pairs of what is shown and what it stands for.
        pairs = [(name, name) for name in names] if self.variant == "forge" else names
        self.dropdown = SimpleNamespace(choices=pairs)
        sys.modules["gradio.context"].Context.root_block = _Blocks()
        for elem_id, component in (
            ("txt2img_steps", SimpleNamespace()),
            ("txt2img_hr_upscaler", self.dropdown),
        ):
            for callback in self._callbacks.get("on_after_component", []):
                callback(component, elem_id=elem_id)

    def _create_refresh_button(
        self,
        component: Any,
        refresh: Callable[[], None],
        arguments: Callable[[], dict[str, Any]],
        elem_id: str,
    ) -> None:
        def press() -> None:
            refresh()
            vars(component).update(arguments())

        self.refresh_buttons[elem_id] = press

    def start_app(self, app: Any) -> None:
        """Says that the web application is there."""
        for callback in self._callbacks.get("on_app_started", []):
            callback(None if self.nowebui else SimpleNamespace(), app)

    def unload_extension(self) -> None:
        self._call("on_script_unloaded")

    def reload_ui(self) -> None:
        """What the button does; modules.shared and modules.processing stay."""
        self.unload_extension()
        self.load_extension()

    def _call(self, event: str) -> None:
        for callback in self._callbacks.get(event, []):
            callback()

    # Checkpoints

    def checkpoint_info(self, name: str) -> Any:
        file = self.checkpoint_files.get(name, Path(f"/nowhere/{name}.safetensors"))
        return SimpleNamespace(name=name, filename=str(file))

    def load_checkpoint(self, name: str) -> None:
        self.shared.sd_model = checkpoint(self.variant, name)
        self.channels = CHECKPOINTS[name][0]

    # Its VAE

    def _encode(self, image: Tensor, approximation: Any, model: Any) -> Tensor:
        """A picture (N, 3, H, W) from 0 to 1: the mean of each 8x8 pixels, from -1 to 1."""
        assert self.queue_lock.locked(), "the VAE belongs to whose turn it is"
        grey = torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 8) * 2 - 1
        return grey.expand(-1, self.channels, -1, -1).clone()

    def _decode(
        self, model: Any, batch: Tensor, target_device: Any = None, check_for_nans: bool = False
    ) -> list[Tensor]:
        """The pictures (3, 8H, 8W) of latents, from -1 to 1."""
        assert self.queue_lock.locked(), "the VAE belongs to whose turn it is"
        pixels = batch.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return list(torch.nn.functional.interpolate(pixels, scale_factor=8.0).clamp(-1, 1))

    def _begin(self, job: str = "(unknown)") -> None:
        state = self.shared.state
        state.interrupted = state.skipped = False
        state.job, state.job_count, state.job_no, state.textinfo = job, -1, 0, None

    def _end(self) -> None:
        self.shared.state.job, self.shared.state.job_count = "", 0

    # Jobs

    def noise(self, seeds: list[int], height: int, width: int) -> Tensor:
        """A latent for each seed, the same at every call."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (self.channels, height, width)
        return torch.stack([torch.randn(shape, generator=one) for one in generators])

    def progress(self) -> tuple[float, str | None]:
        """What the progress bar shows: how far it is, and its text."""
        state = self.shared.state
        if state.job_count <= 0:
            return 0.0, state.textinfo
        part = state.sampling_step / state.sampling_steps if state.sampling_steps else 0.0
        return min((state.job_no + part) / state.job_count, 1.0), state.textinfo

    def interrupt(self) -> None:
        self.shared.state.interrupted = True

    def skip(self) -> None:
        self.shared.state.skipped = True

    def latent_upscale_modes(self) -> list[str]:
        return list(self.shared.latent_upscale_modes)

    def paste(self, infotext: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The payload and the override_settings that parameters stand for."""
        found = re.findall(r'(\w[\w \-/]*): *("(?:\\.|[^"\\])*"|[^,]*)', infotext.split("\n")[-1])
        values = {key: json.loads(text) if text[:1] == '"' else text for key, text in found}
        payload: dict[str, Any] = {"enable_hr": "Hires upscaler" in values}
        for key, name, convert in (
            ("Hires upscaler", "hr_upscaler", str),
            ("Hires upscale", "hr_scale", float),
            ("Denoising strength", "denoising_strength", float),
        ):
            if key in values:
                payload[name] = convert(values[key])
        opts = self.shared.opts
        known = {info.infotext: key for key, info in opts.data_labels.items() if info.infotext}
        settings = {known[name]: value for name, value in values.items() if name in known}
        return payload, {k: v for k, v in settings.items() if opts.data.get(k) != v}

    def txt2img(self, payload: dict[str, Any]) -> Job:
        """A job as by the API, with its payload."""
        payload = dict(payload)
        infotext = payload.pop("infotext", None)
        if infotext is not None:
            pasted, settings = self.paste(infotext)
            given = payload.get("override_settings", {})
            payload = {**pasted, **payload, "override_settings": {**settings, **given}}
        return self.run(self.job_class(**payload))

    def img2img(self, payload: dict[str, Any]) -> Job:
        return self.run(self.img2img_class(**payload))

    def run(self, p: Any) -> Job:
        """Runs a job that was made before; the X/Y/Z script does so with copies of one."""
        job, printed, opts = Job(), io.StringIO(), self.shared.opts
        stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
        self.sampled_first = False
        with contextlib.redirect_stdout(printed):
            try:
                for key, value in p.override_settings.items():
                    opts.set(key, value, is_api=True)
                self.load_checkpoint(opts.sd_model_checkpoint)
                with self._mode():
                    self._process(p, job)
            except Exception as error:
                job = Job(error=str(error))
            finally:
                opts.data.update(stored)
        job.log, job.first_pass = printed.getvalue(), self.sampled_first
        return job

    def xyz(self, payload: dict[str, Any], axis: str, values: list[str]) -> Job:
        """What the X/Y/Z script does: runs shallow copies of one job. The first is the grid."""
        p, parts = self.job_class(**payload), []
        for value in values:
            one = copy.copy(p)
            if axis == "Hires upscaler":
                one.hr_upscaler = value
            else:
                self.axes[axis].apply(one, value, values)
            parts.append(self.run(one))
        width = sum(part.sizes[0][0] for part in parts)
        job = Job([(width, parts[0].sizes[0][1])], [b""], [""], log="".join(p.log for p in parts))
        for part in parts:
            job.sizes += part.sizes
            job.pictures += part.pictures
            job.infotexts += part.infotexts
        return job

    @contextlib.contextmanager
    def _mode(self) -> Iterator[None]:
        gradients = torch.no_grad() if self.variant == "a1111" else torch.inference_mode()
        with gradients, torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            yield

    def _process(self, p: Any, job: Job) -> None:
        seeds = [p.seed + index for index in range(p.batch_size * p.n_iter)]
        p.init([p.prompt] * len(seeds), seeds, seeds)
        state = self.shared.state
        for number in range(p.n_iter):
            state.skipped = False
            if state.interrupted:
                break
            batch = seeds[number * p.batch_size : (number + 1) * p.batch_size]
            latents = p.sample(batch)
            if not isinstance(latents, Decoded) and type(latents) is not Tensor:
                raise TypeError(f"the host cannot decode a {type(latents).__name__}")
            for latent in latents:
                job.sizes.append((latent.shape[-1] * 8, latent.shape[-2] * 8))
                job.pictures.append(latent.float().mean(0).numpy().tobytes())
                job.infotexts.append(_infotext(p))


class _Blocks:
    """What gradio makes a page of, as far as its load event goes."""

    def __init__(self) -> None:
        self.loads: list[tuple[Callable[[], dict[str, Any]], list[Any]]] = []

    def load(self, run: Any, inputs: list[Any], outputs: list[Any], **how: Any) -> None:
        assert not inputs and set(how) <= {"show_progress", "queue", "api_name"}
        self.loads.append((run, outputs))


def _resize_image(mode: int, image: Any, width: int, height: int, upscaler_name: str) -> Any:
    assert (mode, upscaler_name) == (0, "Lanczos")
    return image.resize((width, height))


def _init_axis(
    self: Any, label: str, type: Any, apply: Any, confirm: Any = None, choices: Any = None
) -> None:
    vars(self).update(label=label, type=type, apply=apply, confirm=confirm, choices=choices)


def _shared_names() -> list[str]:
    """What is in sys.modules of the host and of the extension."""
    roots = ("modules", "lib_latent_upscale", "gradio")
    return [name for name in sys.modules if name.partition(".")[0] in roots]


def _infotext(p: Any) -> str:
    values = {"Steps": p.steps, "Seed": p.seed, "Size": f"{p.width}x{p.height}"}
    values.update(p.extra_generation_params)
    texts = {key: str(value) for key, value in values.items()}
    quoted = {key: json.dumps(t) if re.search(r"[,:\n]", t) else t for key, t in texts.items()}
    return f"{p.prompt}\n" + ", ".join(f"{key}: {text}" for key, text in quoted.items())


def checkpoint(variant: str, name: str) -> Any:
    """A loaded checkpoint, with the names under which that host keeps its latents' numbers."""
    channels, factor, shift = CHECKPOINTS[name]
    numbers = SimpleNamespace(scale_factor=factor, latent_channels=channels)
    if shift:
        numbers.shift_factor = shift
    if variant == "a1111":
        if shift:
            return SimpleNamespace(latent_format=numbers, latent_channels=channels)
        return SimpleNamespace(scale_factor=factor, latent_channels=channels)
    if variant == "forge":
        first_stage = SimpleNamespace(scaling_factor=factor, shift_factor=shift)
        vae = SimpleNamespace(first_stage_model=first_stage, latent_channels=channels)
        return SimpleNamespace(forge_objects=SimpleNamespace(vae=vae))
    vae = SimpleNamespace(first_stage_model=SimpleNamespace(), latent_channels=channels)
    model = SimpleNamespace(model_config=SimpleNamespace(latent_format=numbers))
    unet = SimpleNamespace(model=model)
    return SimpleNamespace(forge_objects=SimpleNamespace(vae=vae, unet=unet))
