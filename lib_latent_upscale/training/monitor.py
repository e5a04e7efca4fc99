"""What a run tells: its log, its curves, its samples, its best weights, and a report at the end."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from . import own_weights, report, sheets
from .curve import Curve
from .distributed import Process
from .parts import Parts
from .settings import Settings
from .validation import describe


class Monitor:
    """The first process's eyes; silent in the others."""

    def __init__(self, settings: Settings, process: Process, parts: Parts) -> None:
        self.settings, self.speaks = settings, process.is_first
        self.validation, self.space = parts.validation, parts.reader.space
        self.rows = settings.recipe.batch * settings.recipe.accumulation * process.world
        self.curve = Curve(settings.folder)
        self.best: float | None = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._passed_over = 0
        self._last_log = time.monotonic()
        self._measured = -1
        self._bar = tqdm(
            total=settings.recipe.steps, unit="step", disable=None if self.speaks else True
        )
        self._writer = _tensorboard(settings) if self.speaks else None
        self._metadata = own_weights.metadata_of(settings.recipe, parts.network, self.space)

    def say(self, text: str) -> None:
        """A line of the log, on the screen and in `log.txt`."""
        if not self.speaks:
            return
        tqdm.write(text)
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        with (self.settings.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def state_dict(self) -> dict[str, Any]:
        """What the curve and the choice of the best weights need to go on."""
        return {
            "best": self.best,
            "sums": dict(self._sums),
            "count": self._count,
            "passed_over": self._passed_over,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.best, self._sums = state["best"], dict(state["sums"])
        self._count, self._passed_over = state["count"], state["passed_over"]

    def after_step(
        self,
        step: int,
        losses: dict[str, float],
        *,
        rate: float,
        norm: float,
        seconds: float,
        passed_over: bool,
    ) -> None:
        """Takes in a step; every so many it tells the means."""
        self._bar.update(step - self._bar.n)
        for name, value in {**losses, "gradient": norm, "seconds": seconds}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._passed_over += passed_over
        if not self.settings.log_every or step % self.settings.log_every:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        figures = {**means, "rate": rate, "passed_over": self._passed_over}
        seconds = max(1e-9, time.monotonic() - self._last_log) / self._count
        self._sums, self._count, self._passed_over = {}, 0, 0
        self._last_log = time.monotonic()
        if not self.speaks:
            return
        self.curve.add("train", step, figures)
        self._scalars("train", step, figures)
        left = (self.settings.recipe.steps - step) * seconds
        odd = figures["passed_over"]
        self.say(
            f"step {step} of {self.settings.recipe.steps}: "
            + ", ".join(f"{k} {v:.5g}" for k, v in means.items() if k != "seconds")
            + f", rate {rate:.3g}, {self.rows / seconds:.1f} pairs/s, {_duration(left)} left"
            + (f", {odd} odd batches passed over" if odd else "")
        )

    def baseline(self) -> None:
        """What bicubic interpolation does on the validation pairs, to compare with."""
        if self.validation is not None:
            figures = self.validation.bicubic()
            self.curve.add("baseline", 0, figures)
            self.say(
                f"bicubic on {len(self.validation.cases)} pairs: {describe(figures, self.space)}"
            )
        self._last_log = time.monotonic()

    def look(self, step: int, network: nn.Module) -> None:
        """Validates and draws samples where they are due."""
        if not self.speaks or self.validation is None:
            return
        if self.settings.validate_every and step % self.settings.validate_every == 0:
            self._validate(step, network)
        if self.settings.sample_every and step % self.settings.sample_every == 0:
            self._sample(step, network)

    def keep(self, step: int, network: nn.Module, name: str, **figures: float) -> None:
        """Writes the weights to `weights/NAME.safetensors`."""
        path = self.settings.folder / "weights" / f"{name}.safetensors"
        own_weights.write(path, network, {**self._metadata, "steps": str(step)}, figures)

    def resumed(self, step: int) -> None:
        """Told when a run goes on."""
        if self.speaks:
            self.curve.cut_after(step)
            self.say(f"going on from step {step}")

    def rolled_back(self, at: int, to: int, loss: float, norm: float, batches: int) -> None:
        """Told when training broke."""
        if not self.speaks:
            return
        self.curve.cut_after(to)
        text = (
            f"training broke at step {at} (loss {loss:.4g}, gradient {norm:.4g}): back to the "
            f"checkpoint of step {to}, {batches} batches passed over from now on"
        )
        self.curve.add("event", at, {"text": text})
        self.say(text)

    def finish(self, step: int, network: nn.Module, outcome: str) -> None:
        """The last figures, samples and the report."""
        self._bar.close()
        if not self.speaks:
            return
        if self.validation is not None and step:
            self._validate(step, network)
            self._sample(step, network)
        path = report.write(self.settings, self.curve, outcome, step)
        self.say(f"{outcome} at step {step}: {path}")
        if self._writer is not None:
            self._writer.close()

    def _validate(self, step: int, network: nn.Module) -> None:
        assert self.validation is not None
        if self._measured == step:
            return
        self._measured = step
        figures = self.validation.measure(network)
        self.curve.add("validation", step, figures)
        self._scalars("validation", step, figures)
        name, more_is_better = self.validation.criterion
        value = figures[name]
        is_best = math.isfinite(value) and (
            self.best is None or (value > self.best if more_is_better else value < self.best)
        )
        if is_best:
            self.best = value
            self.keep(step, network, "best", **figures)
        self.say(
            f"step {step}, validation: {describe(figures, self.space)}"
            + (", the best so far" if is_best else "")
        )
        self._last_log = time.monotonic()

    def _sample(self, step: int, network: nn.Module) -> None:
        assert self.validation is not None
        path = self.settings.folder / "samples" / f"step-{step:08d}.png"
        if not path.exists():
            sheet = self.validation.samples(network)
            sheets.save(sheet, path)
            if self._writer is not None:
                import numpy as np

                self._writer.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
        self._last_log = time.monotonic()

    def _scalars(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)


def _tensorboard(settings: Settings) -> Any:
    """A writer of TensorBoard's files, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        print(f"no curves for TensorBoard, it is not installed ({error})")
        return None
    return SummaryWriter(str(settings.folder / "tensorboard"))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
