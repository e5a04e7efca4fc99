"""Loading, Reload UI, unloading, and other extensions beside this one."""

from __future__ import annotations

import functools
import gc
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.catalog import CATALOG

from ..misbehaving import MisbehavingServer
from .double import EXTENSION, Double
from .jobs import BUNDLED, CITY96, HIRES, NEURAL, done, random_city96, runs

METHODS = ("init", "sample_hr_pass")
OURS = [NEURAL, *(entry.label for entry in CATALOG.values())]


def our_modules() -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] == "lib_latent_upscale"]
    return {name: sys.modules[name] for name in names}


def test_reloading_leaves_one_wrapper_and_no_old_module(webui: Double) -> None:
    done(webui.txt2img(HIRES))
    for _ in range(2):
        old = our_modules()
        webui.reload_ui()
        new = our_modules()
        assert new and not set(map(id, old.values())) & set(map(id, new.values()))
    for name in METHODS:
        wrapper = getattr(webui.job_class, name)
        assert wrapper.__globals__ is not None and not hasattr(wrapper.__wrapped__, "__wrapped__")
        assert wrapper.__code__.co_filename.startswith(str(EXTENSION / "lib_latent_upscale"))
    assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]
    names = webui.latent_upscale_modes()
    assert [name for name in names if name in OURS] == OURS


def test_unloading_undoes_everything() -> None:
    with Double(load=False) as webui:
        modes = {name: dict(mode) for name, mode in webui.shared.latent_upscale_modes.items()}
        methods = {name: vars(webui.job_class)[name] for name in METHODS}
        before = done(webui.txt2img({**HIRES, "hr_upscaler": "Latent"}))
        path = list(sys.path)
        webui.load_extension()
        assert sys.path == path
        assert all(vars(webui.job_class)[name] is not methods[name] for name in METHODS)
        during = done(webui.txt2img({**HIRES, "hr_upscaler": "Latent"}))
        done(webui.txt2img(HIRES))
        webui.unload_extension()
        assert webui.shared.latent_upscale_modes == modes
        assert all(vars(webui.job_class)[name] is methods[name] for name in METHODS)
        # Through it all, the host's own upscalers gave the same pictures.
        after = done(webui.txt2img({**HIRES, "hr_upscaler": "Latent"}))
        assert before.pictures == during.pictures == after.pictures
        error = webui.txt2img(HIRES).error
        assert error is not None and "could not find upscaler" in error


def test_loading_twice_is_loading_once() -> None:
    with Double(load=False) as webui:
        methods = {name: vars(webui.job_class)[name] for name in METHODS}
        webui.load_extension()
        webui.load_extension()  # by a host that did not call on_script_unloaded
        for name in METHODS:
            assert getattr(webui.job_class, name).__wrapped__ is methods[name]
        assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]
        webui.unload_extension()
        assert all(vars(webui.job_class)[name] is methods[name] for name in METHODS)


def test_unloading_frees_the_models(a1111: Double) -> None:
    done(a1111.txt2img(HIRES))
    cache = sys.modules["lib_latent_upscale.webui.models"].cache
    models = [weakref.ref(model.upscaler.network) for model in cache._models.values()]
    gc.collect()
    assert models and all(model() is not None for model in models)
    a1111.reload_ui()
    gc.collect()
    assert all(model() is None for model in models)


def test_without_an_interface(models: Path) -> None:
    with Double(nowebui=True) as webui:
        job = done(webui.txt2img(HIRES))
        assert runs(job) == ["bundled-sd15"]
        assert f"Latent neural SD15: {BUNDLED.label}" in job.infotexts[0]


def test_settings_without_an_interface(models: Path) -> None:
    random_city96(models)
    settings = {"latent_upscale_default_sd15": CITY96.label}
    with Double(nowebui=True) as webui:
        job = done(webui.txt2img({**HIRES, "override_settings": settings}))
        assert runs(job) == [CITY96.id]


def test_after_an_update_the_new_code_runs(tmp_path: Path) -> None:
    extension = tmp_path / "extension"
    for name in ("lib_latent_upscale", "scripts", "models"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pth", "*.pt")
        shutil.copytree(EXTENSION / name, extension / name, ignore=ignored)
    file = extension / "lib_latent_upscale/webui/job.py"
    code = file.read_text(encoding="utf-8")
    assert 'f"Latent upscale: ' in code
    with Double(extension) as webui:
        assert runs(done(webui.txt2img(HIRES)))
        changed = code.replace('f"Latent upscale: ', 'f"Latent upscale, updated: ')
        file.write_text(changed, encoding="utf-8")
        assert runs(done(webui.txt2img(HIRES)))
        webui.reload_ui()
        assert "Latent upscale, updated: " in done(webui.txt2img(HIRES)).log


class OtherExtension:
    """Wraps both methods too, and counts its calls."""

    def __init__(self, webui: Double, tidy: bool) -> None:
        self.owner = webui.job_class
        self.calls: dict[str, int] = dict.fromkeys(METHODS, 0)
        self.found = {name: getattr(self.owner, name) for name in METHODS}
        self.wrappers = {name: self._wrapper(name, tidy) for name in METHODS}
        for name, wrapper in self.wrappers.items():
            setattr(self.owner, name, wrapper)

    def _wrapper(self, name: str, tidy: bool) -> Callable[..., Any]:
        original = self.found[name]

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return original(*args, **kwargs)

        return functools.wraps(original)(wrapper) if tidy else wrapper

    def put_back(self) -> None:
        for name, method in self.found.items():
            setattr(self.owner, name, method)


@pytest.mark.parametrize("tidy", [True, False], ids=["functools.wraps", "bare"])
def test_a_wrapper_put_over_ours_survives(a1111: Double, tidy: bool) -> None:
    other = OtherExtension(a1111, tidy)
    assert runs(done(a1111.txt2img(HIRES))) == ["bundled-sd15"]
    assert other.calls == dict.fromkeys(METHODS, 1)

    a1111.unload_extension()
    assert all(getattr(a1111.job_class, name) is other.wrappers[name] for name in METHODS)
    assert not runs(done(a1111.txt2img({**HIRES, "hr_upscaler": "Latent"})))
    assert other.calls == dict.fromkeys(METHODS, 2)

    old: Any = sys.modules["lib_latent_upscale.webui.models"]
    a1111.load_extension()
    for count in (3, 4, 5):
        assert runs(done(a1111.txt2img(HIRES))) == ["bundled-sd15"]
        assert other.calls == dict.fromkeys(METHODS, count)
        assert not old.cache._models  # the wrapper below the other's is silent
        old = sys.modules["lib_latent_upscale.webui.models"]
        a1111.reload_ui()


@pytest.mark.parametrize("tidy", [True, False], ids=["functools.wraps", "bare"])
def test_a_wrapper_under_ours_stays_there(tidy: bool) -> None:
    with Double(load=False) as webui:
        other = OtherExtension(webui, tidy)
        webui.load_extension()
        webui.reload_ui()
        assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]
        assert other.calls == dict.fromkeys(METHODS, 1)
        webui.unload_extension()
        assert all(getattr(webui.job_class, name) is other.wrappers[name] for name in METHODS)


def test_our_old_wrapper_put_back_by_another_is_silent(a1111: Double) -> None:
    other = OtherExtension(a1111, tidy=True)
    a1111.unload_extension()
    other.put_back()
    assert not runs(done(a1111.txt2img({**HIRES, "hr_upscaler": "Latent"})))
    a1111.load_extension()
    assert runs(done(a1111.txt2img(HIRES))) == ["bundled-sd15"]


def test_refresh_makes_a_hand_placed_file_choosable(webui: Double, models: Path) -> None:
    before = webui.in_dropdown()
    path = hand_placed(models / "mine-sd15.safetensors")
    assert list(webui.refresh_buttons) == ["txt2img_hr_upscaler_refresh"]
    press = webui.refresh_buttons["txt2img_hr_upscaler_refresh"]
    press()
    label = "Latent (mine-sd15)"
    assert [name for name in webui.in_dropdown() if name not in before] == [label]
    assert webui.in_dropdown()[-1] == "Lanczos"
    choices = webui.shared.opts.data_labels["latent_upscale_default_sd15"].component_args()
    assert label in choices["choices"]
    assert runs(done(webui.txt2img({**HIRES, "hr_upscaler": label}))) == [path.name]
    path.unlink()
    press()
    assert webui.in_dropdown() == before


def test_a_hand_placed_file_cannot_take_the_hosts_own_name(a1111: Double, models: Path) -> None:
    hand_placed(models / "nearest.safetensors", space="sd15")
    own = dict(a1111.shared.latent_upscale_modes["Latent (nearest)"])
    a1111.refresh_buttons["txt2img_hr_upscaler_refresh"]()
    assert a1111.shared.latent_upscale_modes["Latent (nearest)"] == own
    assert not runs(done(a1111.txt2img({**HIRES, "hr_upscaler": "Latent (nearest)"})))


def test_a_broken_file_breaks_nothing(models: Path) -> None:
    (models / "broken-sd15.safetensors").write_bytes(b"nothing of the kind")
    (models / "broken-sd15.pth").write_bytes(b"")
    with Double() as webui:
        assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]
        assert not [name for name in webui.latent_upscale_modes() if "broken" in name]


def test_the_setting_forbids_to_fetch(a1111: Double, server: MisbehavingServer) -> None:
    a1111.shared.opts.data["latent_upscale_mirror"] = server.base
    payload = {**HIRES, "hr_upscaler": CITY96.label}
    job = a1111.txt2img(payload)
    assert job.error is not None and "could not be fetched" in job.error and server.asked
    asked = len(server.asked)
    a1111.shared.opts.data["latent_upscale_fetch_on_use"] = False
    job = a1111.txt2img(payload)
    assert job.error is not None and "its weights are not in" in job.error
    assert len(server.asked) == asked


def test_the_folder_of_the_settings_is_looked_into(
    a1111: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENT_UPSCALE_MODELS")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    random_city96(folder)
    a1111.shared.opts.data["latent_upscale_model_folder"] = str(folder)
    assert runs(done(a1111.txt2img({**HIRES, "hr_upscaler": CITY96.label}))) == [CITY96.id]


def hand_placed(path: Path, space: str | None = None) -> Path:
    """A file of random weights that is in no catalogue."""
    network = Compact(channels=4, dim=8, depth=1, scale=2)
    save_file(network.to_state_dict(), path, {"space": space} if space else None)
    return path
