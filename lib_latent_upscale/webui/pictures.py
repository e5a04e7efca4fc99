"""Pictures as a VAE takes and gives them."""

from __future__ import annotations

import io

import torch
from PIL import Image, ImageOps
from torch import Tensor

FACTOR = 8
"""Pixels of a picture in one of a latent, on a side; the same for every VAE here."""
MIN_SIDE = 8 * FACTOR
MAX_SIDE = 8192
MAX_PIXELS = 1 << 24
"""4096x4096, or the same in another shape: what is decoded at once."""

_FORMATS = ("PNG", "JPEG", "WEBP")


class PictureError(ValueError):
    """A picture that cannot be used; the message says why."""


def read(content: bytes) -> Image.Image:
    """A picture from a PNG, JPEG or WebP file. Raises `PictureError`.

    Its size is looked at before anything is unpacked.
    """
    try:
        picture = Image.open(io.BytesIO(content), formats=_FORMATS)
        check_size(*picture.size)
        picture.load()
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"this picture is too large: {error}") from error
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        kinds = ", ".join(_FORMATS)
        raise PictureError(f"this is no picture, or a damaged one; {kinds} can be read") from error
    return prepare(picture)


def prepare(picture: Image.Image) -> Image.Image:
    """The picture upright, in RGB, on white where it was transparent, and cut in its middle to
    sides that are multiples of `FACTOR`. Raises `PictureError` for a size that is not allowed."""
    picture = ImageOps.exif_transpose(picture) or picture
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    check_size(*picture.size)
    width, height = (side // FACTOR * FACTOR for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.convert("RGB").crop((left, top, left + width, top + height))


def check_size(width: int, height: int) -> None:
    """Raises `PictureError` unless a picture of this size can be worked with."""
    if min(width, height) < MIN_SIDE:
        raise PictureError(f"{width}x{height}: at least {MIN_SIDE}x{MIN_SIDE} pixels expected")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(
            f"{width}x{height} is too large: up to {MAX_SIDE} pixels on a side and "
            f"{MAX_PIXELS} in all"
        )


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W), from 0 to 1."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255


def from_tensor(values: Tensor) -> Image.Image:
    """A picture from (3, H, W), from 0 to 1."""
    pixels = (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()
