"""What a run gave: a table, a JSON file, and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .jobs import Job


@dataclass(frozen=True)
class Row:
    """One network at one size in one precision."""

    model: str
    size: int
    dtype: str
    median_ms: float
    first_call_ms: float
    """Of a network that was just built: with the constants that later calls find computed."""
    gflop: float
    gflop_per_s: float
    share_of_product: float
    """Of the rate of a large matrix product in the same precision, in the same rounds."""
    peak_mb: float
    published_ms: float | None = None
    """The published code in float32, in the same rounds."""
    published_peak_mb: float | None = None
    ratio: float | None = None
    """The median of published / ours over the rounds."""
    cpu_ratio: float | None = None
    """The same of the processor's seconds: what it says where the machine has other work, too."""
    error: float | None = None
    """Relative to the published code's output (its norm)."""
    first_job: Job | None = None
    """From the file on disk to the larger latent."""
    second_job: Job | None = None
    """Another one after it, with what the first has left."""
    compiled_ms: float | None = None
    """Run compiled (`--compile`), in the same rounds."""
    compile_s: float | None = None
    """What compiling took, beside the jobs."""
    compiled_ratio: float | None = None
    """The median of ours / compiled over the rounds."""
    compiled_cpu_ratio: float | None = None


@dataclass(frozen=True)
class Report:
    """All rows of a run, and where it ran."""

    hardware: str
    torch: str
    date: str
    repeats: int
    product_gflop_per_s: dict[str, float]
    """The rate of a large matrix product, by precision."""
    rows: list[Row]

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def heading(self) -> str:
        rates = ", ".join(f"{key} {rate:.0f}" for key, rate in self.product_gflop_per_s.items())
        return (
            f"{self.hardware}; torch {self.torch}; {self.date}; {self.repeats} rounds; "
            f"GFLOP/s of a matrix product: {rates}"
        )

    def write_plot(self, path: Path) -> None:
        """A bar for each row, and for the published code's time; needs Pillow."""
        from PIL import Image, ImageDraw

        left, width, line, right = 220, 560, 26, 170
        longest = max(max(row.median_ms, row.published_ms or 0) for row in self.rows)
        picture = Image.new("RGB", (left + width + right, line * (len(self.rows) + 2)), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((8, 8), self.heading(), "black")
        for index, row in enumerate(self.rows, start=1):
            top = index * line + 4
            draw.text((8, top + 4), f"{row.model} {row.size}x{row.size} {row.dtype}", "black")
            if row.published_ms is not None:
                end = left + width * row.published_ms / longest
                draw.rectangle((left, top, end, top + 8), "#b0b0b0")
            end = left + width * row.median_ms / longest
            draw.rectangle((left, top + 9, end, top + 19), "#2a6fbb")
            text = f"{row.median_ms:.0f} ms" + (f", {row.ratio:.2f}x" if row.ratio else "")
            draw.text((left + width + 8, top + 4), text, "black")
        draw.text((8, line * (len(self.rows) + 1) + 6), "grey: published, blue: ours", "black")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


HEADER = (
    "| model | latent | precision | ms | first call | GFLOP | GFLOP/s | of a product | peak MB "
    "| published ms | its peak MB | ratio | CPU ratio | error | first job | second job "
    "| compiled ms | its ratio | CPU ratio | to compile s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """A row of the table under `HEADER`."""

    def optional(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = (
        row.model,
        f"{row.size}x{row.size}",
        row.dtype,
        f"{row.median_ms:.0f}",
        f"{row.first_call_ms:.0f}",
        f"{row.gflop:.1f}",
        f"{row.gflop_per_s:.0f}",
        f"{row.share_of_product:.0%}",
        f"{row.peak_mb:.0f}",
        optional(row.published_ms, ".0f"),
        optional(row.published_peak_mb, ".0f"),
        optional(row.ratio, ".2f"),
        optional(row.cpu_ratio, ".2f"),
        optional(row.error, ".1e"),
        str(row.first_job or ""),
        str(row.second_job or ""),
        optional(row.compiled_ms, ".0f"),
        optional(row.compiled_ratio, ".2f"),
        optional(row.compiled_cpu_ratio, ".2f"),
        optional(row.compile_s, ".0f"),
    )
    return "| " + " | ".join(cells) + " |"
