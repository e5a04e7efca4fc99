"""The page "Latent upscale" in a real WebUI and a real browser.

Runs with --webui, playwright (`pip install -e .[browser]`) and a Chromium: playwright's own, the
system's, or what LATENT_UPSCALE_CHROMIUM names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_latent_upscale.catalog import CATALOG

from .. import published
from ..misbehaving import Manner
from .real import RealWebUI

BUNDLED = CATALOG["bundled-sd15"]
SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]
_PATIENCE = 120_000  # milliseconds: the VAE of a WebUI on a busy CPU takes its time

# Complaints of the WebUIs' own, there without this extension as well.
_NOT_OURS = ("iframeResizer", "reading 'props'", "net::ERR_FAILED", "favicon")


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> RealWebUI:
    if not request.config.getoption("--webui"):
        pytest.skip("a real WebUI's page is looked at, and --webui gives none")
    if "--nowebui" in os.environ.get("LATENT_UPSCALE_WEBUI_ARGS", ""):
        pytest.skip("--nowebui: there is no page")
    return request.getfixturevalue("webui")


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """What the browser's console says of errors."""
    return []


@pytest.fixture(scope="module")
def browser(real: RealWebUI) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here")
    known = [os.environ.get("LATENT_UPSCALE_CHROMIUM"), shutil.which("chromium")]
    with playwright.sync_playwright() as running:
        try:
            opened = running.chromium.launch(
                executable_path=next(filter(None, known), None), args=["--no-sandbox"]
            )
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error)[:200]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(real: RealWebUI, browser: Any, complaints: list[str]) -> Any:
    """The page, opened; the tests of this module go on from each other's."""
    real.choose("sd15")
    context = browser.new_context(viewport={"width": 1300, "height": 1200})
    context.set_default_timeout(_PATIENCE)
    context.route(lambda url: not url.startswith(real.url), lambda route: route.abort())
    opened = context.new_page()

    def hear(text: str) -> None:
        if not any(known in text for known in _NOT_OURS):
            complaints.append(text)

    opened.on("console", lambda line: line.type == "error" and hear(f"{line.text} {line.location}"))
    opened.on("pageerror", lambda error: hear(f"{error} {error.stack}"))
    load(opened, real)
    tab = opened.locator("#tabs button").get_by_text("Latent upscale", exact=True)
    tab.first.click()
    opened.wait_for_selector(".latent_upscale_models")  # the script asked for it
    return opened


def load(page: Any, real: RealWebUI) -> None:
    page.goto(real.url, wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", state="attached")
    page.wait_for_timeout(3000)  # the WebUI's scripts come after


def element(page: Any, name: str) -> Any:
    return page.locator(f"#latent_upscale_{name}").first  # gradio 3 has some ids twice


def row(page: Any, id: str) -> Any:
    return page.locator(f'tr[data-model="{id}"]')


def act(page: Any, id: str, action: str) -> None:
    row(page, id).locator(f'[data-action="{action}"]').click()


def told(page: Any, text: str) -> str:
    """The message under the work, once it has that text."""
    page.locator("#latent_upscale_told .latent_upscale_message", has_text=text).first.wait_for()
    return str(element(page, "told").inner_text())


def drop(page: Any, path: Path) -> str:
    """Drops a file in place of the last; what the page says of it."""
    clear = page.locator("#latent_upscale_file button[aria-label=Clear]")
    if clear.count():
        clear.first.click()
        page.locator("#latent_upscale_described .latent_upscale_message").wait_for(state="detached")
    page.locator("#latent_upscale_file input[type=file]").set_input_files(path)
    page.locator("#latent_upscale_described .latent_upscale_message").first.wait_for()
    return str(element(page, "described").inner_text())


def test_a_model_is_fetched_stopped_verified_and_deleted(page: Any, real: RealWebUI) -> None:
    content = published_swinfir(real.models.parent)
    real.mirror.files[f"/{SWINFIR.file.name}"] = content
    slow = Manner(trickle=0.1, block=50_000)  # a minute: however busy, Stop comes in time
    real.mirror.manners[f"/{SWINFIR.file.name}"] = [slow, Manner()]
    act(page, SWINFIR.id, "fetch")
    page.wait_for_function(
        "() => { const bar = document.querySelector('#latent_upscale_told progress');"
        " return bar && bar.value > 0 && bar.value < bar.max; }"
    )
    act(page, SWINFIR.id, "stop")
    told(page, "stopped")
    assert "arrived" in row(page, SWINFIR.id).inner_text()
    act(page, SWINFIR.id, "fetch")
    told(page, "fetched and checked")
    act(page, SWINFIR.id, "verify")
    assert re.search(r"sha256 [0-9a-f]{64}, as when it was fetched", told(page, "sha256"))
    kept = real.models / SWINFIR.file.kept_name
    page.once("dialog", lambda dialog: dialog.dismiss())
    act(page, SWINFIR.id, "delete")
    page.wait_for_timeout(500)
    assert kept.is_file()
    page.once("dialog", lambda dialog: dialog.accept())
    act(page, SWINFIR.id, "delete")
    told(page, "deleted")
    assert not kept.exists()
    row(page, SWINFIR.id).locator('[data-action="fetch"]').wait_for()


def published_swinfir(folder: Path) -> bytes:
    path = folder / "swinfir.pth"
    torch.save(published.state_dict("SwinFIR4x6"), path)
    return path.read_bytes()


def test_a_wrong_file_is_told(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "wrong.png"
    path.write_bytes(b"no picture")
    assert "no picture, or a damaged one" in drop(page, path)
    element(page, "run").click()
    page.locator("#latent_upscale_results .error", has_text="no picture").first.wait_for()
    page.locator("#tab_latent_upscale .progressDiv").wait_for(state="detached")


def test_a_picture_in_all_ways_and_what_can_be_done_with_them(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "gradient.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    assert drop(page, path).strip() == "Picture, 96x64"
    element(page, "run").click()
    page.locator("#tab_latent_upscale .progressDiv").wait_for()
    figures = page.locator(".latent_upscale_figures figure")
    figures.nth(3).wait_for()
    names = figures.locator("b").all_inner_texts()
    assert names[:2] == ["Input", "Bicubic"] and names[3] == BUNDLED.label
    page.wait_for_function(
        "() => [...document.querySelectorAll('#latent_upscale_results img')]"
        ".every((picture) => picture.naturalWidth > 0)"
    )
    stage = page.locator(".latent_upscale_stage")
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    at = stage.evaluate("(stage) => parseFloat(stage.style.getPropertyValue('--at'))")
    assert at == pytest.approx(25, abs=1)
    page.locator("select[data-side=left]").select_option(label="Input")
    assert "-0-Input.png" in stage.locator("img.left").get_attribute("src")
    with page.expect_download() as download:
        figures.nth(3).get_by_text("Latent", exact=True).click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert tuple(load_file(saved)["latent"].shape) == (1, 4, 16, 24)
    assert drop(page, saved).strip() in ("Latent", "Latent of a picture of 192x128")
    act(page, BUNDLED.id, "unload")
    told(page, "unloaded")
    assert "loaded" not in row(page, BUNDLED.id).inner_text()


def test_it_fits_a_telephone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    width = page.evaluate(
        "Math.max(...[...document.querySelectorAll('#tab_latent_upscale *')]"
        ".map((part) => part.getBoundingClientRect().right))"
    )
    assert width <= 390


def offered(page: Any) -> list[str]:
    """What the dropdown of Hires. fix offers."""
    field = page.locator("#txt2img_hr_upscaler input").first
    if not field.is_visible():
        page.locator("#txt2img_hr .label-wrap").first.click()
    field.click()
    choices = page.locator("#txt2img_hr_upscaler ul li")
    choices.first.wait_for()
    names = [text.strip(" \n\u2713") for text in choices.all_inner_texts()]
    field.press("Escape")
    return names


def test_the_hires_dropdown_follows_the_settings(page: Any, real: RealWebUI) -> None:
    page.set_viewport_size({"width": 1300, "height": 1200})
    for shown in ([BUNDLED.label], [SWINFIR.label], []):
        real.set_options({"latent_upscale_shown": shown})
        load(page, real)
        names = offered(page)
        assert "Latent (neural)" in names and "Lanczos" in names
        ours = [label for label in (BUNDLED.label, SWINFIR.label) if label in names]
        assert ours == (shown or [BUNDLED.label, SWINFIR.label])


def test_a_hidden_model_can_be_pasted(page: Any, real: RealWebUI) -> None:
    """An infotext names it; the dropdown, which does not offer it, takes it all the same."""
    page.set_viewport_size({"width": 1300, "height": 1200})
    real.set_options({"latent_upscale_shown": [SWINFIR.label]})
    try:
        load(page, real)
        page.locator("#txt2img_prompt textarea").first.fill(
            "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, "
            f"Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: {BUNDLED.label}"
        )
        page.locator("#txt2img_tools #paste").first.click()
        page.wait_for_function(
            "label => document.querySelector('#txt2img_hr_upscaler input').value === label",
            arg=BUNDLED.label,
        )
        page.locator("#txt2img_generate").first.click()
        done = page.locator("#html_info_txt2img", has_text=f"Hires upscaler: {BUNDLED.label}")
        done.first.wait_for()
    finally:
        real.set_options({"latent_upscale_shown": []})


def test_the_console_has_no_error_of_ours(page: Any, complaints: list[str]) -> None:
    assert complaints == []
