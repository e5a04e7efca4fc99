"""The page "Latent upscale" in the double: what its buttons do, and what it then shows."""

from __future__ import annotations

import importlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.weights import files

from .. import published
from ..misbehaving import Manner, MisbehavingServer
from .double import Double
from .jobs import BUNDLED, NEURAL, bicubic, random_city96
from .page import Page

SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]
TASK = "task(page)"


@pytest.fixture
def page(a1111: Double) -> Iterator[Page]:
    built = Page(a1111)
    yield built
    importlib.import_module("lib_latent_upscale.webui.results").forget()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    drawn = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    drawn.paste("orange", (16, 16, 40, 48))
    path = tmp_path / "a <b> & c.png"
    drawn.save(path)
    return path


def names(html: str) -> list[str]:
    return [unescape(name) for name in re.findall(r"<figcaption><b>(.*?)</b>", html)]


def links(html: str, suffix: str) -> list[Path]:
    found = re.findall(r'<a [^>]*href="file=(.*?)"', html)
    return [Path(unquote(unescape(one))) for one in found if one.endswith(suffix)]


def text(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", html))


def row(page: Page, id: str) -> str:
    (found,) = re.findall(rf'<tr data-model="{id}">.*?</tr>', page["models"].value)
    return found


def actions(page: Page, id: str) -> list[str]:
    return re.findall(r'data-action="(\w+)"', row(page, id))


def test_it_is_built_in_every_host_without_reading_anything(
    webui: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was read")

    for name in ("open", "read_bytes", "read_text", "stat"):
        monkeypatch.setattr(Path, name, refuse)
    page = Page(webui)
    monkeypatch.undo()
    assert (page.title, page.id) == ("Latent upscale", "latent_upscale")
    assert all(name.startswith("latent_upscale_") for name in page.components)


def test_all_ways_side_by_side(page: Page, picture: Path, models: Path) -> None:
    random_city96(models)
    page.drop(picture)
    assert text(page["described"].value).strip() == "Picture, 96x64"
    page["labels"].value = [NEURAL, BUNDLED.label, "Latent (city96 x2)"]
    page.press("run", TASK)
    shown = page["results"].value
    assert names(shown) == [
        "Input",
        "Bicubic",
        "Decode, upscale, encode (Lanczos)",
        BUNDLED.label,
        "Latent (city96 x2)",
    ]
    pictures, latents = links(shown, ".png"), links(shown, ".safetensors")
    assert {str(path) for path in (*pictures, *latents)} <= set(page.served)
    assert [Image.open(path).size for path in pictures] == [(96, 64)] + [(192, 128)] * 4
    small, large = (load_file(path)["latent"] for path in latents[:2])
    assert torch.allclose(large, bicubic(small, (16, 24)))
    assert len(re.findall(r"192x128 · \d+\.\d\d s", shown)) == 4
    # The slider begins with the two that matter most.
    chosen = re.findall(r"<option value=\"[^\"]*\" selected>(.*?)</option>", shown)
    assert chosen == ["Bicubic", "Latent (city96 x2)"]
    assert "loaded: " in row(page, BUNDLED.id)


def test_a_latent_and_a_size(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"latent": torch.randn(1, 4, 8, 12)}, path, {"space": "sd15"})
    page.drop(path)
    page["ways"].value, page["width"].value = ["Bicubic"], 144
    page.press("run", TASK)
    assert names(page["results"].value) == ["Input", "Bicubic", BUNDLED.label]
    assert re.findall(r"<span>(\d+x\d+)", page["results"].value) == ["96x64"] + ["144x96"] * 2
    assert links(page["results"].value, ".png")[2].name.startswith("mine-2-Latent-neural-SD1.5")


def test_several_latents_in_one_file(page: Page, a1111: Double, tmp_path: Path) -> None:
    checkpoint = a1111.checkpoint_files["sd15"] = tmp_path / "checkpoint.safetensors"
    save_file({"cond_stage_model.x": torch.zeros(1)}, checkpoint)
    path, several = tmp_path / "mine.safetensors", torch.randn(3, 4, 8, 12)
    save_file({"latent": several}, path)
    page.drop(path)
    assert "3 latents of pictures of 96x64" in text(page["described"].value)
    page.press("run", TASK)
    shown = page["results"].value
    assert "3 latents were upscaled" in text(shown)
    pictures, files = links(shown, ".png"), links(shown, ".safetensors")
    given, *large = (load_file(file)["latent"] for file in files)
    assert torch.equal(given, several)
    assert [tuple(one.shape) for one in large] == [(3, 4, 16, 24)] * 3
    assert torch.allclose(large[0], bicubic(several, (16, 24)))
    # Each as if it were alone, and the first one's picture shown.
    save_file({"latent": several[:1].clone()}, path)
    page.drop(path)
    page.press("run", TASK)
    alone = page["results"].value
    assert "latents" not in text(alone)
    for picture, file, one, all_of_them in zip(
        links(alone, ".png")[1:], links(alone, ".safetensors")[1:], pictures[1:], large
    ):
        assert torch.allclose(load_file(file)["latent"], all_of_them[:1], atol=1e-5)
        assert picture.read_bytes() == one.read_bytes()


def test_names_cannot_be_markup(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "<img onerror=alert(1)>.png"
    path.write_bytes(b"none")
    page.drop(path)
    page["labels"].value = ["<script>alert(1)</script>"]
    page.press("run", TASK)
    Image.new("RGB", (64, 64)).save(path)
    page.press("run", TASK)
    page.press("act", "verify", "<script>")
    for name in ("results", "models", "told", "described"):
        assert not re.search(r"<(script|img on)", page[name].value or "")
    assert "&lt;script&gt;" in page["results"].value


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", b"no picture", "no picture, or a damaged one"),
        ("x.safetensors", b"no latent", "damaged or no .safetensors file"),
        ("x.latent", b"no latent", "damaged or no .latent file"),
        ("x.npy", b"no latent", "damaged or no .npy file"),
        ("x.txt", b"text", "no picture"),
    ],
)
def test_wrong_files_are_told_when_they_are_dropped_and_when_they_are_used(
    page: Page, a1111: Double, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    checkpoint = a1111.checkpoint_files["sd15"] = tmp_path / "checkpoint.safetensors"
    save_file({"cond_stage_model.x": torch.zeros(1)}, checkpoint)
    path = tmp_path / name
    path.write_bytes(content)
    page.drop(path)
    page.press("run", TASK)
    for html in (page["described"].value, page["results"].value):
        assert message in text(html) and 'class="latent_upscale_message error"' in html


def test_latents_that_do_not_fit_are_refused(page: Page, tmp_path: Path) -> None:
    for tensor, metadata, message in (
        (torch.zeros(1, 16, 8, 8), None, "16 channels"),
        (torch.zeros(1, 4, 8, 8), {"space": "sdxl"}, "sdxl"),
        (torch.zeros(1, 4, 2, 2), None, "16x16"),
        (torch.full((1, 4, 8, 8), torch.nan), None, "NaN"),
    ):
        path = tmp_path / "x.safetensors"
        save_file({"latent": tensor}, path, metadata)
        page.drop(path)
        page.press("run", TASK)
        assert message in text(page["results"].value)


def test_a_checkpoint_is_no_latent(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # sparse: nothing of it is ever read
    page.drop(path)
    assert "too many for a latent" in text(page["described"].value)


def test_nothing_given_is_told_and_the_bar_ends(page: Page, a1111: Double, picture: Path) -> None:
    page.press("run", TASK)
    assert "Drop a picture" in page["results"].value
    page.drop(picture)
    page["labels"].value, page["ways"].value = [], []
    page.press("run", TASK)
    assert "choose at least one" in page["results"].value
    assert a1111.tasks == [("finished", TASK)] * 2


def test_what_one_model_fails_with_leaves_the_others(page: Page, picture: Path) -> None:
    page.drop(picture)
    page["labels"].value = ["Latent (city96 x2 SDXL)", SWINFIR.label, NEURAL]
    page["ways"].value = []
    page.press("run", TASK)
    shown = page["results"].value
    assert names(shown) == ["Input", BUNDLED.label]
    assert "is for SDXL latents" in text(shown) and "could not be fetched" in text(shown)


def test_an_unforeseen_error_is_told_too(
    page: Page,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = importlib.import_module("lib_latent_upscale.webui.host")

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of the host's")

    monkeypatch.setattr(host, "encode", fail)
    page.drop(picture)
    page.press("run", TASK)
    assert "ZeroDivisionError: of the host's" in text(page["results"].value)
    assert "Traceback" not in page["results"].value
    assert "Traceback" in capsys.readouterr().out


def test_interrupt_keeps_what_is_done(page: Page, a1111: Double, picture: Path) -> None:
    """The button is pressed while the second way runs."""
    workbench = importlib.import_module("lib_latent_upscale.webui.workbench")
    original = workbench.Workbench.through_pixels

    def interrupted(self: Any, *values: Any, **named: Any) -> Any:
        page.press("interrupt")
        return original(self, *values, **named)

    workbench.Workbench.through_pixels = interrupted
    page.drop(picture)
    page.press("run", TASK)
    assert "Interrupted" in page["results"].value
    assert names(page["results"].value) == ["Input", "Bicubic"]
    assert a1111.shared.state.interrupted is False and not a1111.queue_lock.locked()


def test_progress_goes_on_from_way_to_way(page: Page, a1111: Double, picture: Path) -> None:
    workbench, seen = importlib.import_module("lib_latent_upscale.webui.workbench"), []
    original = workbench.Workbench.decode

    def decode(self: Any, latent: Any) -> Any:
        seen.append(round(a1111.progress()[0], 2))
        return original(self, latent)

    workbench.Workbench.decode = decode
    page.drop(picture)
    page["ways"].value = ["Bicubic"]
    page.press("run", TASK)
    assert seen == [0.33, 0.67]


def test_only_the_last_results_are_kept(page: Page, picture: Path) -> None:
    page.drop(picture)
    page["ways"].value = ["Bicubic"]
    shown = []
    for _ in range(6):
        page.press("run", TASK)
        shown += links(page["results"].value, ".png")[:1]
    assert [path.exists() for path in shown] == [False] * 2 + [True] * 4
    importlib.import_module("lib_latent_upscale.webui").uninstall()
    assert not any(path.exists() for path in shown)


def test_the_choice_follows_the_checkpoint(page: Page, a1111: Double, tmp_path: Path) -> None:
    key = "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"
    file = a1111.checkpoint_files["sdxl"] = tmp_path / "xl.safetensors"
    save_file({key: torch.zeros(1)}, file)
    page["labels"].value = [BUNDLED.label]
    page.press("opened")
    assert page["labels"].value == [BUNDLED.label]  # nothing tells: all can be chosen
    a1111.shared.opts.data["sd_model_checkpoint"] = "sdxl"
    page.press("opened")
    choices = page["labels"].described["choices"]
    assert choices[0] == NEURAL and all("SDXL" in choice for choice in choices[1:])
    assert page["labels"].value == [NEURAL]


def test_refreshing_finds_new_files(page: Page, models: Path) -> None:
    shutil.copy(
        files.MODEL_FOLDER / "compact-sd15-x2.safetensors", models / "mine-sd15.safetensors"
    )
    page.press("refresh")
    assert "Latent (mine-sd15)" in page["labels"].described["choices"]
    assert actions(page, "mine-sd15.safetensors") == ["verify"]


# The list of models


def served(page: Page, server: MisbehavingServer, tmp_path: Path, **how: Any) -> None:
    path = tmp_path / SWINFIR.file.name
    torch.save(published.state_dict("SwinFIR4x6"), path)
    server.files[f"/{path.name}"] = path.read_bytes()
    server.manners[f"/{path.name}"] = [Manner(**how)]


def test_the_list_tells_all_there_is_of_every_model(page: Page) -> None:
    page.press("opened")
    for entry in CATALOG.values():
        told = text(row(page, entry.id))
        assert entry.label in told and entry.licence in told and entry.space.label in told
        if entry.source.startswith("https://"):
            assert f'href="{entry.source}"' in row(page, entry.id)
    assert actions(page, BUNDLED.id) == ["verify"] and "present" in row(page, BUNDLED.id)
    assert actions(page, SWINFIR.id) == ["fetch"] and "29 MB" in row(page, SWINFIR.id)


def test_fetching_verifying_and_deleting(
    page: Page,
    server: MisbehavingServer,
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    served(page, server, tmp_path)
    answers = page.press("fetch", "fetch", SWINFIR.id)
    assert "<progress" in answers[0][0]
    assert "fetched and checked" in page["told"].value
    assert actions(page, SWINFIR.id) == ["verify", "delete"]
    page.press("act", "verify", SWINFIR.id)
    assert "sha256" in page["told"].value and "as when it was fetched" in page["told"].value
    kept = models / SWINFIR.file.kept_name
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x7f")
    page.press("act", "verify", SWINFIR.id)
    assert "error" in page["told"].value
    page.press("act", "delete", SWINFIR.id)
    assert not kept.exists() and actions(page, SWINFIR.id) == ["fetch"]


def test_a_fetch_that_fails_says_why(page: Page) -> None:
    page.press("fetch", "fetch", SWINFIR.id)
    assert "error" in page["told"].value and "ConnectionRefused" in page["told"].value
    page.press("fetch", "fetch", "nothing")
    assert "nothing: no such model" in page["told"].value


def test_a_fetch_is_stopped_and_a_page_loaded_anew_goes_on_showing_it(
    page: Page, server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    served(page, server, tmp_path, trickle=0.05, block=200_000)
    thread = threading.Thread(target=page.press, args=("fetch", "fetch", SWINFIR.id))
    thread.start()
    while "<progress" not in (page["told"].value or ""):
        assert thread.is_alive()
        time.sleep(0.05)
    (event,) = page["opened"].events["click"]
    watching = event.happen({})
    next(watching)
    assert actions(page, SWINFIR.id) == ["stop"]
    assert "<progress" in next(watching)[0]
    page.press("act", "stop", SWINFIR.id)
    thread.join(5)
    assert not thread.is_alive() and "stopped" in list(watching)[-1][0]
    assert "fetch" in actions(page, SWINFIR.id)


def test_interrupt_ends_a_fetch_that_a_comparison_began(
    page: Page,
    a1111: Double,
    server: MisbehavingServer,
    tmp_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENT_UPSCALE_MIRROR", server.base)
    served(page, server, tmp_path, trickle=0.05, block=200_000)
    page.drop(picture)
    page["labels"].value, page["ways"].value = [SWINFIR.label], ["Bicubic"]
    thread = threading.Thread(target=page.press, args=("run", TASK))
    thread.start()
    while "fetching" not in (a1111.progress()[1] or ""):
        assert thread.is_alive()
        time.sleep(0.05)
    page.press("interrupt")
    thread.join(2)
    assert not thread.is_alive()
    assert names(page["results"].value) == ["Input", "Bicubic"]
    assert "Interrupted" in page["results"].value
    assert "arrived" in row(page, SWINFIR.id)


def test_unloading(page: Page, picture: Path) -> None:
    page.drop(picture)
    page["ways"].value = []
    page.press("run", TASK)
    assert actions(page, BUNDLED.id) == ["verify", "unload"]
    page.press("act", "unload", BUNDLED.id)
    assert actions(page, BUNDLED.id) == ["verify"]
    page.press("run", TASK)
    page.press("unload_all")
    assert "loaded" not in page["models"].value


def test_what_ships_cannot_be_deleted(page: Page) -> None:
    for action, id, message in (
        ("delete", BUNDLED.id, "ships with this extension"),
        ("verify", "../../etc/passwd", "no such model"),
        ("format", BUNDLED.id, "no such action"),
    ):
        page.press("act", action, id)
        assert message in page["told"].value


def test_without_gradios_queue_only_the_end_is_shown(a1111: Double) -> None:
    a1111.shared.cmd_opts.no_gradio_queue = True
    page = Page(a1111)
    answers = page.press("fetch", "fetch", SWINFIR.id)
    assert len(answers) == 1 and "error" in answers[0][0]
