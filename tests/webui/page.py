"""The double's interface, as far as a page of an extension sees it: a little of gradio.

Components are records. A press runs what gradio would run, with the values that the components
hold, and puts the answers into them. What the page's script does in a browser is not here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from .double import Double


class Component:
    """Any component; a layout is one too."""

    current: Page

    def __init__(self, value: Any = None, **described: Any) -> None:
        self.value, self.described = value, described
        self.events: dict[str, list[Event]] = {}
        if "elem_id" in described:
            assert described["elem_id"] not in self.current.components, "an id twice"
            self.current.components[described["elem_id"]] = self

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def click(self, run: Any, **how: Any) -> Event:
        return self._on("click", run, **how)

    def change(self, run: Any, **how: Any) -> Event:
        return self._on("change", run, **how)

    def _on(self, name: str, run: Any, **how: Any) -> Event:
        event = Event(run, **how)
        self.events.setdefault(name, []).append(event)
        return event


class Event:
    """What runs, from which components' values, and where the answers go."""

    def __init__(
        self, run: Any, inputs: Any = (), outputs: Any = (), _js: Any = None, **how: Any
    ) -> None:
        assert set(how) <= {"show_progress", "queue"}
        self.run, self.inputs, self.outputs, self.script = run, inputs, outputs, _js
        self.next: Event | None = None

    def then(self, run: Any, **how: Any) -> Event:
        self.next = Event(run, **how)
        return self.next

    def happen(self, given: dict[int, Any]) -> Iterator[list[Any]]:
        """Runs it, and those after it; yields the answers, each time that there are some.

        given: values for inputs by their number, as the page's script gives them.
        """
        values = [given.get(index, one.value) for index, one in enumerate(self.inputs)]
        result = self.run(*values)
        for answer in result if inspect.isgenerator(result) else [result]:
            answers = list(answer) if len(self.outputs) > 1 else [answer]
            assert len(answers) == len(self.outputs) or not self.outputs
            for component, one in zip(self.outputs, answers):
                is_update = isinstance(one, dict)
                component.described.update(one if is_update else {})
                component.value = one.get("value", component.value) if is_update else one
            yield answers
        if self.next is not None:
            yield from self.next.happen({})


class Page:
    """The extension's page in a double."""

    def __init__(self, double: Double) -> None:
        self.components: dict[str, Component] = {}
        self.served: list[str] = []
        """The files that the page may have."""
        self._double = double
        Component.current = self
        gradio = double._module("gradio", update=dict)
        for name in ("Blocks", "Row", "Column", "File", "HTML", "Dropdown", "CheckboxGroup"):
            setattr(gradio, name, Component)
        for name in ("Slider", "Button", "Textbox"):
            setattr(gradio, name, Component)
        double._module("modules.ui_components", ToolButton=Component)
        double._module(
            "modules.ui_tempdir", register_tmp_file=lambda demo, path: self.served.append(path)
        )
        double.shared.demo = SimpleNamespace()
        self._add_checkpoints()
        (build,) = double._callbacks["on_ui_tabs"]
        ((_, self.title, self.id),) = build()

    def _add_checkpoints(self) -> None:
        double = self._double

        def select_checkpoint() -> Any:
            return double.checkpoint_info(double.shared.opts.sd_model_checkpoint)

        vars(sys.modules["modules.sd_models"]).update(
            select_checkpoint=select_checkpoint, model_data=SimpleNamespace(sd_model=None)
        )

    def __getitem__(self, name: str) -> Component:
        return self.components[f"latent_upscale_{name}"]

    def press(self, name: str, *given: Any) -> list[list[Any]]:
        """Presses a button; given: the first inputs' values. Returns all answers."""
        (event,) = self[name].events["click"]
        return list(event.happen(dict(enumerate(given))))

    def drop(self, path: Any) -> None:
        """Drops a file, as gradio 3 hands it over, or takes it away."""
        self["file"].value = None if path is None else SimpleNamespace(name=str(path))
        (event,) = self["file"].events["change"]
        list(event.happen({}))
