"""The workbench in the double: a picture or a latent, by any model or way."""

from __future__ import annotations

import importlib
import io
import threading
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.spaces import SDXL

from .double import Double
from .jobs import BUNDLED, HIRES, bicubic


def ours(name: str) -> Any:
    """A module of the extension that the double has loaded."""
    return importlib.import_module(f"lib_latent_upscale.webui.{name}")


def picture(width: int = 64, height: int = 64) -> Image.Image:
    drawn = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    drawn.paste("orange", (16, 16, 40, 48))
    return drawn


def latent(channels: int = 4, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_a_picture_becomes_larger(webui: Double, capsys: pytest.CaptureFixture[str]) -> None:
    workbench = ours("workbench")
    with workbench.opened() as bench:
        small = bench.encode(ours("pictures").prepare(picture(96, 64)))
        size = workbench.target(small, factor=2)
        result = bench.upscale(small, bench.choose("bundled-sd15"), size)
        large = bench.decode(result.latent)
    assert tuple(small.shape) == (1, 4, 8, 12) and size == (16, 24)
    assert large.size == (192, 128)
    assert result.seconds > 0 and result.path.name == BUNDLED.file.name
    assert "Latent upscale: bundled-sd15, 12x8 to 24x16 in " in capsys.readouterr().out


def test_a_model_gives_what_it_gives_in_a_hires_pass(a1111: Double) -> None:
    a1111.txt2img({**HIRES, "seed": 1})
    first = a1111.noise([1], 8, 8)
    workbench = ours("workbench")
    with workbench.opened() as bench:
        result = bench.upscale(first, bench.choose(), (16, 16)).latent
    assert torch.equal(result, a1111.hires_inputs[0])


def test_the_other_ways(a1111: Double) -> None:
    workbench = ours("workbench")
    small = latent().clamp(-1, 1)
    with workbench.opened() as bench:
        assert torch.equal(bench.bicubic(small, (16, 24)).latent, bicubic(small, (16, 24)))
        through = bench.through_pixels(small, (16, 24))
    assert tuple(through.latent.shape) == (1, 4, 16, 24)
    # The double's VAE knows grey only: what comes back is near the interpolated mean.
    expected = bicubic(small.mean(1, keepdim=True), (16, 24)).expand(-1, 4, -1, -1)
    assert float((through.latent - expected).abs().mean()) < 0.2


def test_the_queue_is_held_meanwhile_and_let_go_after_an_error(a1111: Double) -> None:
    workbench = ours("workbench")
    with pytest.raises(ZeroDivisionError), workbench.opened("task(page)") as bench:
        assert a1111.queue_lock.locked()
        assert a1111.shared.state.job == "task(page)"
        bench.encode(ours("pictures").prepare(picture()))
        assert a1111.shared.state.textinfo == "Latent upscale: encoding"
        a1111.interrupt()
        raise ZeroDivisionError
    assert not a1111.queue_lock.locked()
    assert not a1111.shared.state.interrupted and a1111.shared.state.job == ""
    assert a1111.tasks == [(event, "task(page)") for event in ("queued", "started", "finished")]


def test_it_waits_for_its_turn(a1111: Double) -> None:
    workbench, entered = ours("workbench"), threading.Event()

    def work() -> None:
        with workbench.opened():
            entered.set()

    with a1111.queue_lock:
        thread = threading.Thread(target=work)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()


def test_interrupt_ends_it(a1111: Double) -> None:
    workbench = ours("workbench")
    interrupted = importlib.import_module("lib_latent_upscale.inference").Interrupted
    for step in ("encode", "upscale"):
        with pytest.raises(interrupted), workbench.opened() as bench:
            entry = bench.choose()
            a1111.interrupt()
            if step == "encode":
                bench.encode(ours("pictures").prepare(picture()))
            bench.upscale(latent(), entry, (16, 24))
    with workbench.opened() as bench:  # and the next one is not
        bench.upscale(latent(), bench.choose(), (16, 24))


def test_a_model_of_another_space_is_refused(a1111: Double) -> None:
    workbench = ours("workbench")
    with workbench.opened() as bench:
        with pytest.raises(workbench.WrongSpaceError, match=r"is for SDXL latents.*bundled-sd15"):
            bench.choose("city96-x2-sdxl")
        entry = bench.choose("city96-x2-sdxl", importlib.import_module(SDXL.__module__).SDXL)
        assert entry.id == "city96-x2-sdxl"
        with pytest.raises(workbench.WrongSpaceError, match="16"):
            bench.upscale(latent(16), bench.choose(), (16, 24))
        with pytest.raises(workbench.WrongSpaceError, match="16"):
            bench.decode(latent(16))


def test_each_space_has_its_default_and_unknown_ones_say_so(a1111: Double) -> None:
    workbench = ours("workbench")
    a1111.load_checkpoint("flux")
    with workbench.opened() as bench:
        assert bench.choose().id == "bundled-flux"
    a1111.load_checkpoint("unknown")
    with workbench.opened() as bench, pytest.raises(workbench.WorkbenchError, match="kind"):
        bench.encode(ours("pictures").prepare(picture()))


def test_memory_that_runs_out_is_told(a1111: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> Tensor:
        raise RuntimeError("CUDA out of memory")

    workbench = ours("workbench")
    monkeypatch.setattr(ours("host"), "encode", run_out)
    with (
        workbench.opened() as bench,
        pytest.raises(workbench.NoMemoryError, match="while encoding; choose a smaller"),
    ):
        bench.encode(ours("pictures").prepare(picture()))


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (16, 24)),
        ({"factor": 1.5}, (12, 18)),
        ({"width": 256, "height": 200}, (25, 32)),
        ({"width": 192}, (16, 24)),
        ({"height": 131}, (16, 25)),
    ],
)
def test_sizes(a1111: Double, asked: dict[str, Any], size: tuple[int, int]) -> None:
    assert ours("workbench").target(latent(), **asked) == size


@given(
    sides=st.tuples(st.integers(8, 1024), st.integers(8, 1024)),
    asked=st.fixed_dictionaries(
        {}, optional={name: st.integers(1, 9000) for name in ("width", "height")}
    ),
    factor=st.none() | st.floats(1, 8),
)
def test_every_size_is_allowed_or_refused(
    sides: tuple[int, int], asked: dict[str, int], factor: float | None
) -> None:
    from lib_latent_upscale.webui import pictures, workbench

    try:
        high, wide = workbench.target(torch.empty(1, 4, *sides), factor=factor, **asked)
    except pictures.PictureError:
        return
    assert 8 * min(high, wide) >= 64 and 8 * max(high, wide) <= pictures.MAX_SIDE
    assert 64 * high * wide <= pictures.MAX_PIXELS
    for side, name in ((high, "height"), (wide, "width")):
        if name in asked:
            assert abs(8 * side - asked[name]) <= 4


# Pictures


def test_pictures_become_upright_opaque_and_of_sides_that_fit() -> None:
    from lib_latent_upscale.webui import pictures

    clear = Image.new("RGBA", (77, 100), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    file = io.BytesIO()
    clear.save(file, "png", exif=exif)
    read = pictures.read(file.getvalue())
    assert (read.mode, read.size) == ("RGB", (96, 72))
    assert read.getpixel((5, 5)) == (255, 255, 255)


def test_a_picture_is_the_same_after_a_tensor() -> None:
    from lib_latent_upscale.webui import pictures

    drawn = picture(96, 64)
    values = pictures.to_tensor(drawn)
    assert tuple(values.shape) == (1, 3, 64, 96)
    assert pictures.from_tensor(values[0]).tobytes() == drawn.tobytes()
    assert pictures.read(pictures.to_png(drawn)).tobytes() == drawn.tobytes()


def test_what_is_no_picture_is_refused() -> None:
    from lib_latent_upscale.webui import pictures

    whole = pictures.to_png(picture())
    bitmap = io.BytesIO()
    picture().save(bitmap, "bmp")
    for content in (b"", b"GIF89a", whole[:200], bitmap.getvalue(), b"\x89PNG\r\n\x1a\n" * 9):
        with pytest.raises(pictures.PictureError, match="no picture"):
            pictures.read(content)


@pytest.mark.parametrize("side", [9000, 30000])
def test_a_picture_is_unpacked_only_if_it_is_not_too_large(side: int) -> None:
    from lib_latent_upscale.webui import pictures

    # The header of a large picture, and nothing else.
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header
    content += zlib.crc32(header).to_bytes(4, "big")
    with pytest.raises(pictures.PictureError, match="too large"):
        pictures.read(content + (100).to_bytes(4, "big") + b"IDAT" + bytes(100))
    with pytest.raises(pictures.PictureError, match="at least 64x64"):
        pictures.prepare(Image.new("RGB", (63, 64)))


def test_every_catalogued_model_can_be_chosen_for_its_space(a1111: Double) -> None:
    workbench, spaces = ours("workbench"), importlib.import_module("lib_latent_upscale.spaces")
    with workbench.opened() as bench:
        for entry in CATALOG.values():
            assert bench.choose(entry.id, spaces.SPACES[entry.space.id]).id == entry.id
