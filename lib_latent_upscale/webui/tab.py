"""The page "Latent upscale": pictures and latents in several ways, and the models.

Only gradio's components and what connects them; `comparison` does the work, `model_list` the
list's, and `markup` shows it. gradio is 3.41 in AUTOMATIC1111 and reForge, and 4.40 in Forge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import latent_files
from . import comparison, hires, host_page, markup, model_list, models, results
from .comparison import Wish

TITLE, ID = "Latent upscale", "latent_upscale"

_FILE_TYPES = ["image", *latent_files.SUFFIXES]


def build() -> list[tuple[Any, str, str]]:
    """The page, for `script_callbacks.on_ui_tabs`; no file is read for it."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Row(elem_id=f"{ID}_work"):
            with gr.Column(scale=1, min_width=320):
                file, described = _file()
                labels, refresh = _models()
                wish = [file, labels, *_ways(), *_size()]
                with gr.Row():
                    run = gr.Button("Upscale", variant="primary", elem_id=f"{ID}_run")
                    interrupt = gr.Button("Interrupt", elem_id=f"{ID}_interrupt")
            with gr.Column(scale=2, min_width=320, elem_classes=["progress-container"]):
                shown = gr.HTML(elem_id=f"{ID}_results")
        table = _list(labels)

        task = gr.Textbox(visible=False)
        run.click(
            _run,
            _js=f"(...all) => latentUpscaleRun(all, {1 + len(wish)})",
            inputs=[task, *wish],
            outputs=[shown, table],
            show_progress=False,
        )
        interrupt.click(host_page.interrupt, inputs=[], outputs=[], queue=False)
        file.change(_describe, inputs=[file], outputs=[described], show_progress=False)
        refresh.click(_rescan, inputs=[labels], outputs=[labels, table])
    return [(page, TITLE, ID)]


def _file() -> tuple[Any, Any]:
    """Where a picture or a latent is dropped, and what it is."""
    import gradio as gr

    file = gr.File(label="Picture or latent", file_types=_FILE_TYPES, elem_id=f"{ID}_file")
    return file, gr.HTML(elem_id=f"{ID}_described")


def _models() -> tuple[Any, Any]:
    """The choice of models, and the button that looks for new ones."""
    import gradio as gr
    from modules.ui_components import ToolButton

    with gr.Row(elem_classes=[f"{ID}_line"]):
        labels = gr.Dropdown(
            choices=model_list.labels(),
            value=[models.NEURAL],
            multiselect=True,
            label="Models",
            elem_id=f"{ID}_labels",
        )
        refresh = ToolButton(value="\U0001f504", elem_id=f"{ID}_refresh")
    return labels, refresh


def _ways() -> tuple[Any, Any]:
    """The other ways, and the upscaler of pictures for one of them."""
    import gradio as gr

    ways = gr.CheckboxGroup(
        choices=list(comparison.OTHER_WAYS),
        value=list(comparison.OTHER_WAYS),
        label="Compare with",
        elem_id=f"{ID}_ways",
    )
    upscaler = gr.Dropdown(
        choices=host_page.pixel_upscalers(),
        value="Lanczos",
        label="Upscaler",
        elem_id=f"{ID}_pixel_upscaler",
    )
    return ways, upscaler


def _size() -> tuple[Any, Any, Any]:
    """Factor, width and height, as in Hires. fix."""
    import gradio as gr

    def slider(label: str, name: str, low: float, high: float, step: float, value: float) -> Any:
        return gr.Slider(
            minimum=low, maximum=high, step=step, value=value, label=label, elem_id=f"{ID}_{name}"
        )

    factor = slider("Upscale by", "factor", 1.0, 4.0, 0.05, 2.0)
    with gr.Row():
        width = slider("Resize width to", "width", 0, 4096, 8, 0)
        height = slider("Resize height to", "height", 0, 4096, 8, 0)
    return factor, width, height


def _list(labels: Any) -> Any:
    """The list of models with what is done there; labels: the choice above it."""
    import gradio as gr

    told, table = gr.HTML(elem_id=f"{ID}_told"), gr.HTML(elem_id=f"{ID}_models")
    with gr.Row():
        unload_all = gr.Button("Unload all models", elem_id=f"{ID}_unload_all")
    # What the script on the page presses: buttons in HTML are none of gradio's.
    action, model = gr.Textbox(visible=False), gr.Textbox(visible=False)
    opened, fetch, act = (
        gr.Button(name, elem_id=f"{ID}_{name}", elem_classes=[f"{ID}_hidden"])
        for name in ("opened", "fetch", "act")
    )
    quiet: dict[str, Any] = {"outputs": [told, table], "show_progress": False}
    asked = {"_js": "latentUpscaleAsked", "inputs": [action, model], **quiet}
    opened.click(_refresh, inputs=[labels], outputs=[labels, table], show_progress=False).then(
        _generating(model_list.watch), inputs=[], **quiet
    )
    fetch.click(_generating(model_list.fetch), **asked)
    act.click(model_list.act, **asked)
    unload_all.click(model_list.unload_all, inputs=[], outputs=[told, table])
    return table


def _run(
    task: str,
    file: Any,
    labels: Sequence[str] | None,
    ways: Sequence[str] | None,
    pixel_upscaler: str | None,
    factor: float,
    width: float,
    height: float,
) -> tuple[str, str]:
    """The results, and the list of models, of which some are now loaded."""
    if file is None:
        host_page.finish_task(task)
        return markup.message(
            "Drop a picture or a latent first.", is_error=True
        ), model_list.table()
    wish = Wish(
        _path(file),
        labels or [],
        ways or [],
        float(factor or 2),
        int(width or 0),
        int(height or 0),
        pixel_upscaler or "Lanczos",
    )
    return results.show(wish, task or None), model_list.table()


def _describe(file: Any) -> str:
    """What was dropped, or why it cannot be used."""
    return results.describe(_path(file)) if file is not None else ""


def _refresh(labels: Sequence[str] | None) -> tuple[Any, str]:
    """The models for the checkpoint that is chosen now, and the list of all."""
    import gradio as gr

    choices = model_list.labels(host_page.chosen_space())
    kept = [label for label in labels or [] if label in choices]
    return gr.update(choices=choices, value=kept or [models.NEURAL]), model_list.table()


def _rescan(labels: Sequence[str] | None) -> tuple[Any, str]:
    hires.refresh()
    return _refresh(labels)


def _path(file: Any) -> Path:
    """Of what gradio hands over for a file: an open file in one version, a name in the other."""
    return Path(getattr(file, "name", file))


def _generating(steps: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """`steps` as gradio can run it: without a queue, only its end is shown."""
    if host_page.has_page_queue():
        return steps

    def at_once(*values: Any) -> Any:
        *_, last = steps(*values)
        return last

    return at_once
