"""The HTML of the page "Latent upscale": what gradio has no components for.

Every text that comes from elsewhere is escaped here. `style.css` gives the look, by the variables
of gradio's themes, and `javascript/latent_upscale.js` the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from ..downloads import Download, State
from ..shelf import Item, Origin
from .comparison import BICUBIC, Comparison, Result

Address = Callable[[Path], str]
"""The address under which the page can have a file."""


def message(text: str, *, is_error: bool = False) -> str:
    """A line of text, or several."""
    kind = "error" if is_error else "note"
    return f'<div class="latent_upscale_message {kind}" role="status">{escape(text)}</div>'


def results(comparison: Comparison, address: Address) -> str:
    """Two results under a slider, and all of them side by side with their times and downloads."""
    parts = [message(problem, is_error=True) for problem in comparison.problems]
    if comparison.latents > 1:
        parts.append(
            message(
                f"{comparison.latents} latents were upscaled: the first of them is shown; "
                "Latent downloads all, and the times are for all."
            )
        )
    if comparison.results:
        parts.append(_slider(comparison.results, address))
        figures = "".join(_figure(result, address) for result in comparison.results)
        parts.append(f'<div class="latent_upscale_figures">{figures}</div>')
    return "".join(parts)


def _slider(found: Sequence[Result], address: Address) -> str:
    left, right = _first_two(found)
    sides = "".join(
        f'<label><span>{label}</span> <select data-side="{side}">'
        + "".join(
            f'<option value="{escape(address(result.picture))}"'
            f"{' selected' if result is chosen else ''}>{escape(result.name)}</option>"
            for result in found
        )
        + "</select></label>"
        for label, side, chosen in (("Left", "left", left), ("Right", "right", right))
    )
    width, height = found[-1].size
    pictures = "".join(
        f'<img class="{side}" src="{escape(address(result.picture))}" alt="{label}">'
        for label, side, result in (("Left", "left", left), ("Right", "right", right))
    )
    return (
        f'<div class="latent_upscale_slider"><div class="latent_upscale_sides">{sides}</div>'
        f'<div class="latent_upscale_stage" style="aspect-ratio: {width} / {height}; '
        f'max-width: {width}px">{pictures}<i></i>'
        '<input type="range" min="0" max="100" value="50" step="0.1" aria-label="Compare"></div>'
        "</div>"
    )


def _first_two(found: Sequence[Result]) -> tuple[Result, Result]:
    """Bicubic beside the first model, as far as they are there."""
    left = next((result for result in found if result.name == BICUBIC), found[0])
    return left, found[-1]


def _figure(result: Result, address: Address) -> str:
    width, height = result.size
    # Not as one text: the page's translations go by whole texts.
    seconds = f" · {result.seconds:.2f} s" if result.seconds is not None else ""
    return (
        f'<figure><img src="{escape(address(result.picture))}" alt="{escape(result.name)}">'
        f"<figcaption><b>{escape(result.name)}</b><span>{width}x{height}{seconds}</span>"
        f"<span>{_download('Picture', result.picture, address)} "
        f"{_download('Latent', result.latent, address)}</span></figcaption></figure>"
    )


def _download(text: str, path: Path, address: Address) -> str:
    where, name = escape(address(path)), escape(path.name)
    return f'<a class="latent_upscale_button" href="{where}" download="{name}">{text}</a>'


def models(items: Iterable[Item], downloads: Iterable[Download]) -> str:
    """The list of models, with what can be done with each."""
    under_way = {one.id for one in downloads if not one.state.ended}
    rows = "".join(_row(item, item.entry.id in under_way) for item in items)
    heads = ("Model", "Latents", "Size", "State", "")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        '<table class="latent_upscale_models">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(item: Item, is_under_way: bool) -> str:
    entry = item.entry
    source = escape(entry.source)
    if entry.source.startswith("https://"):
        source = f'<a href="{source}" target="_blank" rel="noopener noreferrer">Source</a>'
    actions = "".join(
        f'<button type="button" class="latent_upscale_button" data-action="{action}" '
        f'data-model="{escape(entry.id)}">{label}</button>'
        for action, label in _actions(item, is_under_way)
    )
    return (
        f'<tr data-model="{escape(entry.id)}"><td><b>{escape(entry.label)}</b>'
        f"<small>{escape(entry.id)} · {escape(entry.licence)} · {source}</small></td>"
        f"<td>{escape(entry.space.label)}</td><td>{megabytes(item.size)}</td>"
        f"<td>{_state(item, is_under_way)}</td><td>{actions}</td></tr>"
    )


def _actions(item: Item, is_under_way: bool) -> Iterable[tuple[str, str]]:
    if is_under_way:
        yield "stop", "Stop"
    elif not item.present and item.origin is Origin.CATALOGUE:
        yield "fetch", "Fetch"
    if item.present:
        yield "verify", "Verify"
    if item.loaded:
        yield "unload", "Unload"
    if item.origin is Origin.CATALOGUE and (item.present or item.arrived) and not is_under_way:
        yield "delete", "Delete"


def _state(item: Item, is_under_way: bool) -> str:
    parts = ["present" if item.present else "fetching" if is_under_way else "not here"]
    if not item.present and item.arrived:
        parts.append(f"{megabytes(item.arrived)} arrived")
    parts += [
        f"loaded: {megabytes(size)} on {escape(device)}" for device, size in item.loaded.items()
    ]
    if item.problem:
        parts.append(escape(item.problem))
    return "".join(f"<span>{part}</span>" for part in parts)


def progress(download: Download) -> str:
    """How far a download is, and how it ended."""
    if download.state is State.FAILED:
        error = download.error or ""
        return message(error if download.id in error else f"{download.id}: {error}", is_error=True)
    if download.state is State.DONE:
        return message(f"{download.id}: {megabytes(download.done)} fetched and checked")
    if download.state is State.STOPPED:
        return message(f"{download.id}: stopped; what has arrived is kept for the next time")
    amount = f"{download.done / 1e6:.1f} MB"
    total = f' max="{download.total}"' if download.total else ""
    if download.total:
        amount = f"{download.done / 1e6:.1f} of {megabytes(download.total)}"
    what = "waiting" if download.state is State.QUEUED else amount
    return (
        f'<div class="latent_upscale_message latent_upscale_progress" role="status">'
        f"<span>{escape(download.id)}: {what}</span>"
        # No button here: this is made anew so often that a click would miss it.
        f'<progress value="{download.done}"{total}></progress></div>'
    )


def megabytes(size: int) -> str:
    """As in the documents: millions of bytes, a digit after the point where it is a few."""
    return f"{size / 1e6:.1f} MB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"
