"""The settings page, what its choices do to the dropdown, and the axis of the X/Y/Z plot."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lib_latent_upscale.catalog import CATALOG

from .double import VARIANTS, Double
from .jobs import BUNDLED, CITY96, HIRES, NEURAL, done, random_city96, runs
from .test_lifecycle import hand_placed

SHAPE = ["default_sd15", "default_sdxl", "default_sd3", "default_flux", "shown", "misfit"]
SHAPE += ["img2img", "precision", "cache_policy", "gpu_budget", "chunk_limit"]
FILES = ["fetch", "fetch_on_use", "model_folder", "mirror"]


def ours(webui: Double) -> dict[str, Any]:
    labels = webui.shared.opts.data_labels
    return {key: info for key, info in labels.items() if key.startswith("latent_upscale_")}


def choices(webui: Double, name: str) -> list[str]:
    arguments = ours(webui)[f"latent_upscale_{name}"].component_args
    found: list[str] = (arguments() if callable(arguments) else arguments)["choices"]
    return found


def labels(space: str) -> list[str]:
    return [entry.label for entry in CATALOG.values() if entry.space.id == space]


def test_settings_of_the_extension(a1111: Double) -> None:
    for _ in range(2):
        found = ours(a1111)
        found.pop("latent_upscale_compile", None)  # where the engine can
        assert list(found) == [f"latent_upscale_{name}" for name in [*SHAPE, *FILES]]
        # Where files come from and go to is not for a request by the API.
        assert [one.restrict_api for one in found.values()] == [False] * 11 + [True] * 4
        assert {one.section for one in found.values()} == {("latent_upscale", "Latent upscale")}
        a1111.reload_ui()


def test_every_setting_is_explained_and_can_be_translated(a1111: Double) -> None:
    for key, info in ours(a1111).items():
        # The hosts look a whole text up in the user's language: no markup in it.
        assert info.label and not re.search("[<>&]", info.label), key
        (text,) = re.findall(r"<span class='info'>\((.+)\)</span>", info.comment_after)
        assert not re.search("[<>&]", text) and len(text) < 200, key


@pytest.mark.parametrize("space", ["sd15", "sdxl", "sd3", "flux"])
def test_choices_of_a_default_are_the_models_of_its_space(a1111: Double, space: str) -> None:
    assert choices(a1111, f"default_{space}") == ["automatic", *labels(space)]
    assert getattr(a1111.shared.opts, f"latent_upscale_default_{space}") == "automatic"


def test_dropdowns_explain_themselves_where_the_page_does_not(webui: Double) -> None:
    found = ours(webui)["latent_upscale_default_flux"]
    given = getattr(found.component, "keywords", {})
    text = "automatic: the one that this extension recommends"
    assert given == ({"info": text} if webui.variant == "forge" else {})


def test_only_choices_are_updated(a1111: Double) -> None:
    # The hosts give these arguments to gradio's update, too, which in gradio 3 takes no others.
    updated = [info.component_args() for info in ours(a1111).values() if info.refresh]
    assert len(updated) == 6 and all(list(one) == ["choices"] for one in updated)


def test_a_choice_outlives_its_file(a1111: Double, models: Path) -> None:
    # Else gradio would lose it from the page, and the next "Apply settings" from the settings.
    opts, mine = a1111.shared.opts.data, "Latent (mine-sd15)"
    path = hand_placed(models / "mine-sd15.safetensors")
    a1111.refresh_buttons["txt2img_hr_upscaler_refresh"]()
    opts["latent_upscale_default_sd15"] = opts["latent_upscale_img2img"] = mine
    opts["latent_upscale_shown"] = [mine]
    path.unlink()
    ours(a1111)["latent_upscale_shown"].refresh()
    for name in ("default_sd15", "img2img", "shown"):
        assert choices(a1111, name).count(mine) == 1
    assert set(labels("sd15")) <= set(a1111.in_dropdown())
    assert runs(done(a1111.txt2img(HIRES))) == ["bundled-sd15"]


# The dropdown


def test_the_dropdown_shows_the_chosen_models(webui: Double) -> None:
    everything = webui.in_dropdown()
    press = webui.refresh_buttons["txt2img_hr_upscaler_refresh"]
    others = [name for name in everything if name not in [e.label for e in CATALOG.values()]]
    assert NEURAL in others and "Lanczos" in others
    webui.shared.opts.data["latent_upscale_shown"] = [CITY96.label]
    press()
    assert set(webui.in_dropdown()) == {*others, CITY96.label}
    webui.reload_ui()
    assert set(webui.in_dropdown()) == {*others, CITY96.label}
    webui.shared.opts.data["latent_upscale_shown"] = []
    webui.refresh_buttons["txt2img_hr_upscaler_refresh"]()
    assert webui.in_dropdown() == everything


def test_a_loaded_page_shows_what_is_chosen_now(webui: Double) -> None:
    everything = webui.in_dropdown()
    for label in (CITY96.label, BUNDLED.label):
        webui.shared.opts.data["latent_upscale_shown"] = [label]
        webui.load_page()
        assert {CITY96.label, BUNDLED.label} & set(webui.in_dropdown()) == {label}
    webui.shared.opts.data["latent_upscale_shown"] = []
    webui.load_page()
    assert webui.in_dropdown() == everything


def test_a_model_that_is_not_shown_works_by_its_name(webui: Double) -> None:
    webui.shared.opts.data["latent_upscale_shown"] = [CITY96.label]
    webui.reload_ui()
    assert BUNDLED.label not in webui.in_dropdown()
    assert BUNDLED.label in webui.latent_upscale_modes()
    job = done(webui.txt2img({**HIRES, "hr_upscaler": BUNDLED.label}))
    again = {"seed": 1, "width": 64, "height": 64, "infotext": job.infotexts[0]}
    assert runs(job) == runs(done(webui.txt2img(again))) == ["bundled-sd15"]
    # "Latent (neural)" may stand for one, too.
    assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]


# torch.compile


def test_the_engine_is_told_to_compile(a1111: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = sys.modules["lib_latent_upscale.webui.models"]
    upscale, seen = models.engine.upscale, []

    def see(*args: Any, **how: Any) -> Any:
        seen.append(how.get("compile"))
        return upscale(*args, **how)

    monkeypatch.setattr(models.engine, "upscale", see)
    for on in (False, True):
        a1111.shared.opts.data["latent_upscale_compile"] = on
        done(a1111.txt2img(HIRES))
    assert seen == [False, True]


# X/Y/Z


AXIS = "[Latent upscale] precision"


def plot(webui: Double, values: list[str], **payload: Any) -> list[str]:
    """The log lines of a plot along our axis: copies of one job, with its dictionaries."""
    job, axis = webui.job_class(**{**HIRES, **payload}), webui.axes[AXIS]
    axis.confirm(job, values)
    lines = []
    for value in values:
        one = copy.copy(job)
        axis.apply(one, axis.type(value), values)
        result = done(webui.run(one))
        lines += re.findall(r" in (\w+)\n", result.log)
        told = re.findall(r"Latent upscaler precision: (\w+)", result.infotexts[0])
        assert told == [value] * (value != "automatic")
    return lines


def test_the_plot_has_an_axis_for_the_precision(webui: Double) -> None:
    axis = webui.axes[AXIS]
    assert axis.choices() == ["automatic", "float32", "float16", "bfloat16"]
    values = ["bfloat16", "automatic", "float32"]
    assert plot(webui, values) == ["bfloat16", "float32", "float32"]
    assert webui.shared.opts.latent_upscale_precision == "automatic"
    with pytest.raises(RuntimeError, match="choose from automatic, float32"):
        axis.confirm(None, ["float32", "fp8"])


def test_the_axis_is_there_once_and_goes_with_the_extension(webui: Double) -> None:
    labels = [
        axis.label for script in webui.scripts.scripts_data for axis in script.module.axis_options
    ]
    assert labels == ["Nothing", AXIS]
    webui.reload_ui()
    assert list(webui.axes) == ["Nothing", AXIS]
    webui.unload_extension()
    assert list(webui.axes) == ["Nothing"]


def test_without_the_plot_nothing_is_missed() -> None:
    with Double(plots=False) as webui:
        assert not webui.axes
        assert runs(done(webui.txt2img(HIRES))) == ["bundled-sd15"]


# The start


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_network_is_built_before_a_job_wants_one(
    variant: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    begin = nn.Module.__init__

    def counted(module: nn.Module, *args: Any, **how: Any) -> None:
        # By name: the double's library is another one than the tests'.
        if any(kind.__name__ == "Network" for kind in type(module).__mro__):
            built.append(module)
        begin(module, *args, **how)

    monkeypatch.setattr(nn.Module, "__init__", counted)
    random_city96(models)
    hand_placed(models / "mine-sd15.safetensors")
    built.clear()
    with Double(variant=variant) as webui:
        webui.refresh_buttons["txt2img_hr_upscaler_refresh"]()
        assert "Latent (mine-sd15)" in webui.in_dropdown()
        assert not built
        done(webui.txt2img(HIRES))
        assert built
