"""Pictures as people have them: transparent, 16-bit, on their side, damaged, in tars."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.pictures import (
    UNREADABLE,
    PictureFile,
    as_pixels,
    backing_colour,
    find,
    read,
    size,
    to_range,
)

GREEN = (0, 255, 0)


def saved(picture: Image.Image, path: Path, **options: object) -> PictureFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)  # type: ignore[arg-type]
    return PictureFile(path.name, "", path)


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_transparent_pictures_get_a_backing(tmp_path: Path) -> None:
    cut_out = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    cut_out.putpixel((1, 2), (10, 20, 30, 255))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.putpixel((1, 2), 1)
    grey = Image.new("LA", (4, 4), (0, 0))
    grey.putpixel((1, 2), (20, 255))
    files = [
        saved(cut_out, tmp_path / "rgba.png"),
        saved(palette, tmp_path / "p.png", transparency=0),
        saved(grey, tmp_path / "la.png"),
        saved(cut_out, tmp_path / "a.webp", lossless=True),
    ]
    for file in files:
        picture = read(file, GREEN)
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == GREEN
        assert picture.getpixel((1, 2)) in ((10, 20, 30), (20, 20, 20))


def test_16_bits_are_brought_to_8_and_not_cut_off(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    for file in (
        saved(Image.fromarray(ramp), tmp_path / "a.png"),
        saved(Image.fromarray(ramp.astype(np.int32)), tmp_path / "b.tif"),
        saved(Image.fromarray(ramp.astype(np.float32) / 65535), tmp_path / "c.tif"),
    ):
        values = np.asarray(read(file, GREEN))[..., 0].ravel()
        assert np.abs(values.astype(int) - np.arange(256)).max() <= 1


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = saved(picture, tmp_path / "a.jpg", exif=exif)
    assert size(file) == (20, 40)
    upright = read(file, GREEN)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 255, 255)
    assert upright.getpixel((10, 35)) == (0, 0, 0)


def test_a_jpeg_is_read_as_small_as_does(tmp_path: Path) -> None:
    file = saved(noise(640, 480), tmp_path / "a.jpg")
    assert read(file, GREEN, enough=200).size == (320, 240)
    assert read(file, GREEN, enough=300).size == (640, 480)
    assert read(file, GREEN).size == (640, 480)


def test_damaged_pictures_raise_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = io.BytesIO()
    noise().save(whole, "PNG")
    for name, content in (
        ("short.png", whole.getvalue()[:500]),
        ("text.png", b"no picture"),
        ("empty.jpg", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UNREADABLE):
            read(PictureFile(name, "", tmp_path / name), GREEN)
    with pytest.raises(UNREADABLE):
        size(PictureFile("gone.png", "", tmp_path / "gone.png"))
    monkeypatch.setattr("lib_latent_upscale.training.pictures.LARGEST", 1000)
    vast = saved(noise(), tmp_path / "vast.png")
    for look in (size, lambda file: read(file, GREEN)):
        with pytest.raises(ValueError, match="too many"):
            look(vast)


def test_folders_are_walked_in_order_with_labels(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("b/x/2.png", "b/1.PNG", "a/y/z/3.jpg", "top.webp"):
        saved(noise(), root / name)
    (root / "b/notes.txt").write_text("no picture")
    (root / "folder.png").mkdir()
    found = [(file.name, file.label) for file in find([root])]
    assert found == [
        ("set/a/y/z/3.jpg", "a"),
        ("set/b/1.PNG", "b"),
        ("set/b/x/2.png", "b"),
        ("set/top.webp", "set"),
    ]
    assert [file.label for file in find([root], label_depth=2)] == ["a/y", "b", "b/x", "set"]
    assert {file.label for file in find([root], label_depth=0)} == {"set"}
    assert [file.name for file in find([root / "top.webp"])] == ["top.webp"]
    with pytest.raises(TrainingError, match="no such folder, tar or picture"):
        list(find([tmp_path / "nothing"]))


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tars_are_read_where_they_lie(tmp_path: Path) -> None:
    contents = {}
    for number in range(3):
        file = io.BytesIO()
        noise(seed=number).save(file, "PNG")
        contents[number] = file.getvalue()
    tar_of(tmp_path / "set-000.tar", {
        "000.jpg.png": contents[0], "000.cls": b"7\n", "000.json": b"{}",
        "cats/001.png": contents[1], "002.png": contents[2],
    })  # fmt: skip
    found = list(find([tmp_path]))
    assert [(file.name, file.label) for file in found] == [
        ("set-000.tar/000.jpg.png", "7"),
        ("set-000.tar/cats/001.png", "cats"),
        ("set-000.tar/002.png", tmp_path.name),
    ]
    for number, file in enumerate(found):
        assert np.array_equal(np.asarray(read(file, GREEN)), np.asarray(noise(seed=number)))
        assert size(file) == (40, 30)
    assert list(find([tmp_path / "set-000.tar"])) == found


def test_a_damaged_tar_is_told_of_and_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = io.BytesIO()
    noise().save(file, "PNG")
    tar_of(tmp_path / "a.tar", {f"{n}.png": file.getvalue() for n in range(3)})
    whole = (tmp_path / "a.tar").read_bytes()
    second = 512 + -(-len(file.getvalue()) // 512) * 512
    (tmp_path / "a.tar").write_bytes(whole[:second] + b"?" * 512 + whole[second + 512 :])
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    told: list[str] = []
    found = list(find([tmp_path], report=lambda name, why: told.append(f"{name}: {why}")))
    assert [one.name for one in found] == ["a.tar/0.png"]
    assert [line.split(":")[0] for line in told] == ["a.tar", "b.tar"]


def test_backings() -> None:
    assert backing_colour("#010203", random.Random(0)) == (1, 2, 3)
    drawn = {backing_colour("random", random.Random(seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert backing_colour("random", random.Random(1)) in drawn
    with pytest.raises(TrainingError, match="take #808080, white or random"):
        backing_colour("greyish", random.Random(0))


def test_pixels_become_minus_one_to_one() -> None:
    picture = Image.new("RGB", (3, 2), (0, 255, 51))
    pixels = as_pixels(picture)
    assert pixels.shape == (3, 2, 3) and pixels.dtype == torch.uint8
    ranged = to_range(pixels)
    assert torch.equal(ranged[0], torch.full((2, 3), -1.0))
    assert torch.equal(ranged[1], torch.ones(2, 3))
    torch.testing.assert_close(ranged[2], torch.full((2, 3), -0.6))
