"""Finding and reading the pictures that a model is trained on.

They lie in folders, or in tar files as webdataset has them: members one after another, those of
one sample under one name up to its first dot (``000123.jpg``, ``000123.cls``). A tar's pictures are
read where they lie; Python's own tarfile is enough for that, and webdataset is not needed.
"""

from __future__ import annotations

import io
import random
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from .errors import TrainingError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
LARGEST = 150_000_000
"""Pixels of the largest picture that is read: one of more would take gigabytes."""
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, vast or no pictures."""


@dataclass(frozen=True)
class PictureFile:
    """A picture, not opened yet.

    name: of the root folder or the tar, and its path in there, with slashes.
    label: the first folders of that path, or what the sample's ``.cls`` says.
    offset, length: where it lies in `path`, if that is a tar; length is 0 for a file of its own.
    """

    name: str
    label: str
    path: Path
    offset: int = 0
    length: int = 0

    def open(self) -> Image.Image:
        """The picture, its pixels not read yet."""
        if not self.length:
            return Image.open(self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.length)))


def find(
    inputs: Iterable[Path],
    label_depth: int = 1,
    report: Callable[[str, str], None] = lambda name, why: None,
) -> Iterator[PictureFile]:
    """The pictures in folders, in tars, and in tars in folders, always in the same order.

    inputs: folders, tars and single pictures.
    label_depth: how many folders make a label; a picture in none has its root folder's name.
    report: called with the name of a tar that is damaged, and why; what comes before is kept.
    Raises `TrainingError` for an input that is not there.
    """
    for root in inputs:
        if root.is_dir():
            for path in sorted(root.rglob("*")):
                if path.suffix.lower() == ".tar":
                    yield from _in_tar(path, root, label_depth, report)
                elif path.suffix.lower() in SUFFIXES and not path.is_dir():
                    inside = PurePosixPath(path.relative_to(root).as_posix())
                    label = _label(inside, label_depth, root.resolve().name)
                    yield PictureFile(f"{root.resolve().name}/{inside}", label, path)
        elif root.suffix.lower() == ".tar" and root.is_file():
            yield from _in_tar(root, root.parent, label_depth, report)
        elif root.is_file():
            yield PictureFile(root.name, root.resolve().parent.name, root)
        else:
            raise TrainingError(f"{root}: no such folder, tar or picture")


def _in_tar(
    path: Path, root: Path, depth: int, report: Callable[[str, str], None]
) -> Iterator[PictureFile]:
    name = path.relative_to(root).as_posix()
    members: list[tarfile.TarInfo] = []
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                suffix = PurePosixPath(member.name).suffix.lower()
                if member.isfile() and suffix in SUFFIXES and member.size:
                    members.append(member)
                elif member.isfile() and suffix == ".cls" and (file := tar.extractfile(member)):
                    labels[_sample(member.name)] = file.read(200).decode("utf-8", "replace").strip()
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError) as error:
        report(name, f"a damaged tar, or a compressed one, which is to be unpacked: {error}")
    for member in members:
        inside = PurePosixPath(member.name.removeprefix("./"))
        label = labels.get(_sample(member.name)) or _label(inside, depth, root.resolve().name)
        yield PictureFile(f"{name}/{inside}", label, path, member.offset_data, member.size)


def _check_end(path: Path, offset: int) -> None:
    """Raises a TarError if a tar goes on where tarfile took it to be over: it passes over that."""
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {offset}")


def _sample(name: str) -> str:
    """The name that all files of a sample of webdataset share."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _label(inside: PurePosixPath, depth: int, otherwise: str) -> str:
    return "/".join(inside.parts[:-1][:depth]) or otherwise


def size(file: PictureFile) -> tuple[int, int]:
    """A picture's width and height as it is to be seen, without reading its pixels.

    Raises one of `UNREADABLE`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with file.open() as picture:
            width, height = picture.size
            if width * height > LARGEST:
                raise ValueError(f"{width}x{height} pixels are too many")
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation: on its side
            return (height, width) if turned else (width, height)


def read(
    file: PictureFile, backing: tuple[int, int, int], enough: int | None = None
) -> Image.Image:
    """A picture in RGB, the right way up, with a plain backing where it is transparent.

    enough: a short side that will do; a JPEG may then be read smaller, but not below it.
    Raises one of `UNREADABLE`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with file.open() as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"{picture.width}x{picture.height} pixels are too many")
            if enough is not None:
                picture.draft("RGB", (enough, enough))
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        upright = _to_8_bits(upright)
    transparent = "A" in upright.getbands() or "transparency" in upright.info
    if not transparent:
        return upright.convert("RGB")
    ground = Image.new("RGBA", upright.size, (*backing, 255))
    ground.alpha_composite(upright.convert("RGBA"))
    return ground.convert("RGB")


def backing_colour(choice: str, rng: random.Random) -> tuple[int, int, int]:
    """A colour: one of `rng` for "random", else the one named, as by "#808080" or "white"."""
    drawn = rng.randrange(256), rng.randrange(256), rng.randrange(256)
    if choice == "random":
        return drawn
    try:
        colour = ImageColor.getrgb(choice)
    except ValueError as error:
        raise TrainingError(f"backing {choice}: {error}; take #808080, white or random") from error
    return colour[0], colour[1], colour[2]


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """16-bit and float greys, of which Pillow would cut off all above 255."""
    values = np.asarray(picture, dtype=np.float64)
    if picture.mode.startswith("F"):
        values = values * (255 if values.max(initial=0) <= 1 else 1)
    elif picture.mode != "I" or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def as_pixels(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W), uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_range(pixels: Tensor) -> Tensor:
    """uint8 pixels of any shape -> float32 in -1..1, as VAEs want them."""
    return pixels.float() / 127.5 - 1
