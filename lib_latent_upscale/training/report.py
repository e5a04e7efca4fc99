"""The report of a run: one HTML file with its figures, curves and samples, needing nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from . import whole
from .curve import Curve
from .settings import Settings

FILE = "report.html"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 260, 70, 24
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}"
    "img{max-width:100%}svg{max-width:100%;height:auto}pre{background:#f4f4f4;padding:.6em;"
    "overflow:auto}"
)

Points = Sequence[tuple[float, float]]


def write(settings: Settings, curve: Curve, outcome: str, step: int) -> Path:
    """Writes the report into the run's folder, whole or not at all."""
    lines = curve.read()
    recipe = settings.recipe
    body = [
        f"<h1>{_text(recipe.name)}</h1>",
        f"<p>{_text(recipe.summary)}. {_text(outcome.capitalize())} at step {step} of "
        f"{recipe.steps}.</p>",
        *_figures(lines),
        *_curves(lines),
        *_events(lines),
        *_samples(settings.folder / "samples"),
        "<h2>Settings</h2>",
        f"<pre>{_text((settings.folder / 'settings.json').read_text(encoding='utf-8'))}</pre>"
        if (settings.folder / "settings.json").is_file()
        else f"<pre>{_text(json.dumps(recipe.as_json(), indent=1))}</pre>",
    ]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{_text(recipe.name)}</title><style>{_STYLE}</style>{''.join(body)}</html>\n"
    )
    path = settings.folder / FILE
    whole.write_text(path, page)
    return path


def _figures(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The validation's last and best figures beside bicubic interpolation's."""
    measured = [line for line in lines if line["kind"] == "validation"]
    if not measured:
        return ["<p>No pairs were held out: there are no figures of quality.</p>"]
    name, sign = ("psnr", -1) if "psnr" in measured[0] else ("l1", 1)
    rows = [(f"step {measured[-1]['step']}, the last", measured[-1])]
    best = min(measured, key=lambda line: sign * line[name])
    rows.append((f"step {best['step']}, the best", best))
    rows += [("bicubic", line) for line in lines if line["kind"] == "baseline"][:1]
    names = {
        "psnr": "decoded PSNR, dB", "l1": "latent L1", "mse": "latent MSE",
        "idle": "share of idle channels",
    }  # fmt: skip
    keys = [key for key in names if key in measured[0]]
    head = "".join(f"<th>{names[key]}</th>" for key in keys)
    cells = "".join(
        f"<tr><td>{_text(title)}</td>" + "".join(_cell(line.get(key)) for key in keys)
        for title, line in rows
    )
    return [f"<h2>On pictures not trained on</h2><table><tr><th></th>{head}</tr>{cells}</table>"]


def _curves(lines: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for kind, name, title in (
        ("train", "loss", "Loss"),
        ("validation", "psnr", "Decoded PSNR, dB"),
        ("validation", "l1", "Latent L1"),
        ("train", "gradient", "Norm of the gradient"),
    ):
        points = [
            (line["step"], line[name])
            for line in lines
            if line["kind"] == kind and math.isfinite(line.get(name, math.nan))
        ]
        if len(points) > 1:
            found.append(f"<h2>{title}</h2>{plot(points)}")
    return found


def plot(points: Points, colour: str = _COLOURS[0]) -> str:
    """A line through points (step, value) as SVG, with its axes."""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - 10)

    def y(value: float) -> float:
        return 10 + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - 10)

    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    marks = []
    for index in range(5):
        value = low + (high - low) * index / 4
        marks.append(
            f"<line x1='{_LEFT}' x2='{_WIDTH - 10}' y1='{y(value):.1f}' y2='{y(value):.1f}' "
            f"stroke='#ddd'/><text x='{_LEFT - 6}' y='{y(value) + 4:.1f}' text-anchor='end' "
            f"font-size='12'>{value:.4g}</text>"
        )
        step = first + (last - first) * index / 4
        anchor = "start" if index == 0 else "end" if index == 4 else "middle"
        marks.append(
            f"<text x='{x(step):.1f}' y='{_HEIGHT - 6}' text-anchor='{anchor}' font-size='12'>"
            f"{step:.0f}</text>"
        )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}'>{''.join(marks)}"
        f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{path}'/></svg>"
    )


def _events(lines: Sequence[dict[str, Any]]) -> list[str]:
    events = [line for line in lines if line["kind"] == "event"]
    if not events:
        return []
    items = "".join(f"<li>{_text(line['text'])}</li>" for line in events)
    return [f"<h2>What went wrong</h2><ul>{items}</ul>"]


def _samples(folder: Path) -> list[str]:
    """The first, the middle and the last of the sheets."""
    sheets = sorted(folder.glob("step-*.png")) if folder.is_dir() else []
    chosen = sorted({0, len(sheets) // 2, len(sheets) - 1}) if sheets else []
    found = []
    for index in chosen:
        with Image.open(sheets[index]) as image:
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=88)
        step = int(sheets[index].stem.partition("-")[2])
        found.append(
            f"<h2>Samples at step {step}</h2><img alt='samples at step {step}' "
            f"src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'>"
        )
    return found


def _cell(figure: float | None) -> str:
    return "<td></td>" if figure is None else f"<td>{figure:.4f}</td>"


def _text(text: str) -> str:
    return html.escape(text)
