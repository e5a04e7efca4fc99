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
    from modules.ui_components import ToolButton

    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Row(elem_id=f"{ID}_work"):
            with gr.Column(scale=1, min_width=320):
                file = gr.File(
                    label="Picture or latent",
                    file_types=_FILE_TYPES,
                    elem_id=f"{ID}_file",
                )
                with gr.Row(elem_classes=[f"{ID}_line"]):
                    labels = gr.Dropdown(
                        choices=model_list.labels(),
                        value=[models.NEURAL],
                        multiselect=True,
                        label="Models",
                        elem_id=f"{ID}_labels",
                    )
                    refresh = ToolButton(value="\U0001f504", elem_id=f"{ID}_refresh")
                ways = gr.CheckboxGroup(
                    choices=list(comparison.OTHER_WAYS),
                    value=list(comparison.OTHER_WAYS),
                    label="Compare with",
                    elem_id=f"{ID}_ways",
                )
                pixel_upscaler = gr.Dropdown(
                    choices=host_page.pixel_upscalers(),
                    value="Lanczos",
                    label="Upscaler",
                    elem_id=f"{ID}_pixel_upscaler",
                )
                factor = gr.Slider(
                    minimum=1.0,
                    maximum=4.0,
                    step=0.05,
                    value=2.0,
                    label="Upscale by",
                    elem_id=f"{ID}_factor",
                )
                with gr.Row():
                    width, height = (
                        gr.Slider(
                            minimum=0,
                            maximum=4096,
                            step=8,
                            value=0,
                            label=f"Resize {side} to",
                            elem_id=f"{ID}_{side}",
                        )
                        for side in ("width", "height")
                    )
                with gr.Row():
                    run = gr.Button("Upscale", variant="primary", elem_id=f"{ID}_run")
                    interrupt = gr.Button("Interrupt", elem_id=f"{ID}_interrupt")
            with gr.Column(scale=2, min_width=320, elem_classes=["progress-container"]):
                shown = gr.HTML(elem_id=f"{ID}_results")
        told = gr.HTML(elem_id=f"{ID}_told")
        table = gr.HTML(elem_id=f"{ID}_models")
        with gr.Row():
            unload_all = gr.Button("Unload all models", elem_id=f"{ID}_unload_all")
        # What the script on the page presses: buttons in HTML are none of gradio's.
        task, action, model = (gr.Textbox(visible=False) for _ in range(3))
        opened, fetch, act = (
            gr.Button(name, elem_id=f"{ID}_{name}", elem_classes=[f"{ID}_hidden"])
            for name in ("opened", "fetch", "act")
        )

        wish = [task, file, labels, ways, pixel_upscaler, factor, width, height]
        run.click(
            _run,
            _js=f"(...all) => latentUpscaleRun(all, {len(wish)})",
            inputs=wish,
            outputs=[shown, table],
            show_progress=False,
        )
        interrupt.click(host_page.interrupt, inputs=[], outputs=[], queue=False)
        file.change(_describe, inputs=[file], outputs=[told], show_progress=False)
        asked = {"_js": "latentUpscaleAsked", "inputs": [action, model], "show_progress": False}
        refresh.click(_rescan, inputs=[labels], outputs=[labels, table])
        lists = [labels, table]
        opened.click(_refresh, inputs=[labels], outputs=lists, show_progress=False).then(
            _generating(model_list.watch), inputs=[], outputs=[told, table], show_progress=False
        )
        fetch.click(_generating(model_list.fetch), outputs=[told, table], **asked)
        act.click(model_list.act, outputs=[told, table], **asked)
        unload_all.click(model_list.unload_all, inputs=[], outputs=[told, table])
    return [(page, TITLE, ID)]


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
