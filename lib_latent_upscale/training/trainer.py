"""The training itself: steps, checkpoints, going on after a stop, and going back after a crash of
the loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ..architectures.layers.chunks import chunk_limit
from ..spaces import RAW
from . import distributed, optimizers
from .checkpoints import Checkpoints
from .distributed import Process
from .ema import Ema
from .errors import TrainingError
from .monitor import Monitor
from .parts import Parts
from .settings import Settings
from .stability import DEFAULT, Limits, Watch
from .stopping import Stop
from .stream import Batch

_NO_PIECES = 1 << 50
"""Bytes: training keeps what is computed on the way anyway, so cutting it up saves nothing."""

Outcome = Literal["finished", "stopped"]


class Trainer:
    """A run: `run` trains until the steps are done, the time is over or someone stops it.

    Every step's random numbers come from the seed and the step alone, and so do its pairs. So a
    run that goes on from a checkpoint is the run that never stopped.
    """

    def __init__(
        self, settings: Settings, process: Process, parts: Parts, limits: Limits = DEFAULT
    ) -> None:
        self.settings, self.process, self.parts = settings, process, parts
        recipe = settings.recipe
        self.network = parts.network
        self.ema = Ema(parts.network, recipe.ema, recipe.ema_share)
        self.schedule = optimizers.RateSchedule(recipe.schedule, recipe.steps, recipe.warm_up)
        self.watch, self.limits = Watch(limits), limits
        self.checkpoints = Checkpoints(settings.folder / "checkpoints", settings.keep)
        self.monitor = Monitor(settings, process, parts)
        self.step = 0
        self.position = 0
        """The next place in the stream of pairs; it moves on by more than a step's where places
        are skipped."""
        self.skipped: set[int] = set()
        self.rollbacks: list[int] = []
        """The step that each was to."""
        self._recent: list[int] = []
        """The places of the last steps' pairs, for those that turn out to have broken something."""
        self._batches: Iterator[tuple[int, Batch]] | None = None
        self._forward = torch.compile(self.network) if settings.compile else self.network

    def resume(self) -> bool:
        """Goes on from the newest checkpoint; False if there is none."""
        state = self.checkpoints.load_latest(self.process.device)
        if state is None:
            return False
        self.load_state_dict(state)
        self.monitor.resumed(self.step)
        return True

    def run(self, stop: Stop) -> Outcome:
        """Trains. Raises `TrainingError` if it breaks again and again."""
        if not self.checkpoints.steps():
            self._save()
            self.monitor.baseline()
        with chunk_limit(_NO_PIECES):
            try:
                while self.step < self.settings.recipe.steps:
                    if self._advance(stop):
                        self._finish("stopped")
                        return "stopped"
            finally:
                self._close_stream()
        self._finish("finished")
        return "finished"

    def state_dict(self) -> dict[str, Any]:
        """All that decides what comes next."""
        adversary = self.parts.adversary
        return {
            "step": self.step,
            "position": self.position,
            "skipped": sorted(self.skipped),
            "rollbacks": list(self.rollbacks),
            "recent": list(self._recent),
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "adversary": adversary.state_dict() if adversary is not None else None,
            "watch": self.watch.state_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.step, self.position = state["step"], state["position"]
        self.skipped, self.rollbacks = set(state["skipped"]), list(state["rollbacks"])
        self._recent = list(state["recent"])
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.parts.optimizer.load_state_dict(state["optimizer"])
        if self.parts.adversary is not None:
            self.parts.adversary.load_state_dict(state["adversary"])
        self.watch.load_state_dict(state["watch"])
        self.monitor.load_state_dict(state["monitor"])
        self._close_stream()

    def _advance(self, stop: Stop) -> bool:
        """One step, and what is due after it. Whether the run is to stop."""
        self._forget_the_usual_where_losses_start()
        started = time.monotonic()
        rate = self.settings.recipe.learning_rate * self.schedule.factor(self.step)
        optimizers.set_rate(self.parts.optimizer, rate)
        torch.manual_seed(_mixed(self.settings.seed, self.step, self.process.rank))
        places, pairs, loss, parts = self._gradients()
        told = torch.tensor([loss, float(stop.wanted())], dtype=torch.float64)
        told = told.to(self.process.device, torch.float32 if _is_mps(self.process) else None)
        distributed.average([told])
        norm = self._gradient_norm()
        verdict = self.watch.judge(float(told[0]), norm)
        self._recent = (self._recent + places)[-self._places_in_doubt :]
        if verdict == "broken":
            self._roll_back(float(told[0]), norm)
            return bool(told[1] > 0)
        if verdict == "good":
            self._update(pairs)
        else:
            self._zero()
        self.step += 1
        self.monitor.after_step(
            self.step,
            {"loss": float(told[0]), **parts},
            rate=rate,
            norm=norm,
            seconds=time.monotonic() - started,
            passed_over=verdict != "good",
        )
        self._due()
        return bool(told[1] > 0)

    def _gradients(self) -> tuple[list[int], list[tuple[Tensor, Tensor]], float, dict[str, float]]:
        """The gradients of a step's batches; their places, predictions with targets, losses."""
        recipe, scale = self.settings.recipe, self.parts.scale
        self.network.train()
        self._zero()
        bf16 = recipe.precision == "bf16"
        places, pairs, total = [], [], 0.0
        sums: dict[str, float] = {}
        for _ in range(recipe.accumulation):
            place, batch = self._next()
            batch = batch.to(self.process.device)
            small, large = (RAW.to(scale, latent) for latent in (batch.small, batch.large))
            small = small.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.process.device.type, torch.bfloat16, enabled=bf16):
                predicted = self._forward(small, tuple(large.shape[-2:]))
            loss, parts = self.parts.criterion(predicted.float(), large, self.step)
            (loss / recipe.accumulation).backward()
            places.append(place)
            pairs.append((predicted.detach().float(), large))
            total += float(loss.detach()) / recipe.accumulation
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value) / recipe.accumulation
        distributed.average_gradients(self.network.parameters())
        return places, pairs, total, sums

    def _update(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """The optimizer's step, the discriminator's and the average's."""
        self.parts.optimizer.step()
        self._zero()
        self.ema.update(self.network, self.step)
        adversary = self.parts.adversary
        if adversary is not None and self.parts.criterion.counts("adversarial", self.step):
            for predicted, large in pairs:
                adversary.backward(predicted, large, 1 / len(pairs))
            adversary.step()

    def _gradient_norm(self) -> float:
        limit = self.settings.recipe.clip or float("inf")
        return float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit))

    def _zero(self) -> None:
        self.parts.optimizer.zero_grad(set_to_none=True)

    def _next(self) -> tuple[int, Batch]:
        """The next place in the stream that is not skipped, and its batch."""
        while True:
            if self._batches is None:
                self._batches = self.parts.stream.batches(self.position)
            place, batch = next(self._batches)
            self.position = place + 1
            if place not in self.skipped:
                return place, batch

    def _close_stream(self) -> None:
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]
            self._batches = None

    @property
    def _places_in_doubt(self) -> int:
        """Those of the odd steps and of the one before, whose update may have been the cause."""
        return (self.limits.patience + 1) * self.settings.recipe.accumulation

    def _forget_the_usual_where_losses_start(self) -> None:
        if self.step and any(term.start == self.step for term in self.parts.criterion.terms):
            self.watch = Watch(self.limits)

    def _roll_back(self, loss: float, norm: float) -> None:
        """Back to the last good checkpoint; the pairs at fault are passed over from now on."""
        broke_at, first_odd = self.step, self.step - self.watch.streak + 1
        suspects = self._recent[-(self.watch.streak + 1) * self.settings.recipe.accumulation :]
        rollbacks, skipped = list(self.rollbacks), self.skipped | set(suspects)
        distributed.wait()
        if self.process.is_first:
            steps = self.checkpoints.steps()
            if len(steps) > 1 and steps[-1] >= first_odd:
                # Saved after the harm was done, before the next loss showed it.
                self.checkpoints.remove_after(steps[-2])
        distributed.wait()
        state = self.checkpoints.load_latest(self.process.device)
        assert state is not None, "the first checkpoint is written before the first step"
        self.load_state_dict(state)
        self.rollbacks, self.skipped = [*rollbacks, self.step], skipped
        self.watch.streak = 0
        self.monitor.rolled_back(broke_at, self.step, loss, norm, len(suspects))
        if (
            len(self.rollbacks) > self.limits.rollbacks
            or self.rollbacks.count(self.step) > self.limits.at_one_place
        ):
            raise TrainingError(
                f"training broke {len(self.rollbacks)} times, {self.rollbacks.count(self.step)} "
                f"of them after step {self.step}: choose a lower learning rate, clip the gradient "
                "(--set clip=1), or a longer warm-up. The checkpoint of that step is kept"
            )
        self._save()

    def _due(self) -> None:
        settings = self.settings
        if _due(self.step, settings.checkpoint_every) and self.watch.calm:
            self._save()
        self.monitor.look(self.step, self.ema.network)

    def _save(self) -> None:
        distributed.average_norms(self.network)
        distributed.average_norms(self.ema.network)
        if self.process.is_first:
            self.checkpoints.save(self.state_dict(), self.step)
            self.monitor.keep(self.step, self.ema.network, "latest")
        distributed.wait()

    def _finish(self, outcome: Outcome) -> None:
        self._save()
        self.monitor.finish(self.step, self.ema.network, outcome)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mixed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step of every process."""
    return (
        seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    ) % 2**63


def _is_mps(process: Process) -> bool:
    """Whether the device has no float64."""
    return process.device.type == "mps"
