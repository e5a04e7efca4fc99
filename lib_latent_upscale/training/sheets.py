"""Contact sheets: rows of pictures under the names of their columns, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, LINE = 8, 20
"""Pixels between the pictures, and of a line of text."""


@dataclass(frozen=True)
class Row:
    """A row of pictures, one for each column of the sheet.

    captions: a line under each picture, or none.
    """

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()


def contact_sheet(columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """A sheet of rows of pictures; the names of the columns, which may have several lines, on top.

    The pictures keep their sizes: every column is as wide as its widest picture, every row as high
    as its highest. Raises `ValueError` for a row that has not a picture for each column.
    """
    for row in rows:
        if len(row.pictures) != len(columns):
            raise ValueError(f"{row.title}: {len(row.pictures)} pictures, {len(columns)} columns")
    font = _font()
    widths = [max((row.pictures[i].width for row in rows), default=1) for i in range(len(columns))]
    names = [_wrapped(name, width, font) for name, width in zip(columns, widths)]
    top = GAP + LINE * max((name.count("\n") + 1 for name in names), default=0)
    below = [LINE * (1 + any(row.captions)) for row in rows]
    heights = [max(picture.height for picture in row.pictures) for row in rows]
    sheet = Image.new(
        "RGB",
        (GAP + sum(widths) + GAP * len(widths), top + sum(heights) + sum(below) + GAP * len(rows)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, name in zip(lefts, names):
        draw.multiline_text((left, GAP // 2), name, fill="black", font=font, spacing=2)
    for row, height, text in zip(rows, heights, below):
        draw.text((GAP, top), row.title, fill="black", font=font)
        for index, (left, picture) in enumerate(zip(lefts, row.pictures)):
            sheet.paste(picture.convert("RGB"), (left, top + LINE))
            if index < len(row.captions):
                where = (left, top + LINE + height)
                draw.text(where, row.captions[index], fill="black", font=font)
        top += height + text + GAP
    return sheet


def as_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) or (1, 3, H, W) in 0..1; what lies outside is cut off."""
    pixels = picture.detach().reshape(3, *picture.shape[-2:]).clamp(0, 1)
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().cpu().numpy())


def save(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet whole or not at all, as its ending says: .png, .jpg, .webp."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        sheet.save(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=15)
    except (TypeError, OSError):  # Pillow before 10.1, or one without FreeType
        return ImageFont.load_default()


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text with line breaks, so that its lines are no wider than `width` where they can be."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for word in line.split(" "):
            longer = f"{shown} {word}".strip()
            if shown and font.getlength(longer) > width:
                lines.append(shown)
                longer = word
            shown = longer
        lines.append(shown)
    return "\n".join(lines)
