"""The watch over the loss, and going back when training breaks."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from lib_latent_upscale.training.distributed import Process
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.parts import assemble
from lib_latent_upscale.training.settings import Settings
from lib_latent_upscale.training.stability import Limits, Watch
from lib_latent_upscale.training.stopping import Stop
from lib_latent_upscale.training.stream import Batch
from lib_latent_upscale.training.trainer import Trainer

from .tiny import settings, write_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def noisy(steps: int, start: float, end: float, noise: float = 0.1) -> list[float]:
    draw = random.Random(0)
    along = [start + (end - start) * step / steps for step in range(steps)]
    return [value + noise * abs(start) * draw.gauss(0, 1) for value in along]


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (-0.2, -0.9), (0.01, 0.01), (1.0, 1.5)])
def test_usual_losses_are_good(start: float, end: float) -> None:
    watch = Watch()
    assert {watch.judge(loss, 1.0) for loss in noisy(2000, start, end)} == {"good"}


def test_one_hard_batch_is_odd_and_three_are_broken() -> None:
    watch = Watch()
    for loss in noisy(300, 1, 1):
        watch.judge(loss, 1.0)
    before = watch.state_dict()
    assert watch.judge(9, 1.0) == "odd" and not watch.calm
    assert watch.judge(1, 1.0) == "good" and watch.calm
    watch.load_state_dict(before)
    assert [watch.judge(loss, 1.0) for loss in (9, 20, 30)] == ["odd", "odd", "broken"]
    watch.load_state_dict(before)
    assert watch.mean == before["mean"]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_no_number_is_broken_at_once(loss: float, norm: float) -> None:
    assert Watch().judge(loss, norm) == "broken"


def test_no_loss_is_odd_while_all_is_new() -> None:
    watch = Watch(Limits(learning=10))
    assert {watch.judge(loss, 1.0) for loss in (1, 50, 3, 200, 1)} == {"good"}


class Poisoned:
    """A stream whose batches at some places are bad."""

    def __init__(self, trainer: Trainer, bad: dict[int, float]) -> None:
        self.stream, self.bad = trainer.parts.stream, bad
        self.seen: list[int] = []

    def batches(self, first: int = 0):  # type: ignore[no-untyped-def]
        place = first
        while True:
            batch = self.stream.batch(place)
            if place in self.bad:
                large = batch.large * self.bad[place]
                batch = Batch(batch.small, large, batch.labels)
            self.seen.append(place)
            yield place, batch
            place += 1


def trainer_with(
    chosen: Settings, bad: dict[int, float], limits: Limits
) -> tuple[Trainer, Poisoned]:
    process = Process(torch.device("cpu"))
    trainer = Trainer(chosen, process, assemble(chosen, process), limits)
    poisoned = Poisoned(trainer, bad)
    trainer.parts.stream = poisoned  # type: ignore[assignment]
    return trainer, poisoned


def test_back_to_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A batch of no numbers at place 7: back to step 6, and that batch is never seen again."""
    data = write_pairs(tmp_path / "pairs")
    chosen = settings(tmp_path / "run", data, steps=12)
    trainer, _ = trainer_with(chosen, {7: math.nan}, Limits())
    assert trainer.run(Stop()) == "finished"
    assert trainer.rollbacks == [6] and trainer.skipped == {6, 7}
    assert trainer.step == 12 and trainer.position == 14
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "training broke at step 7" in log and "back to the checkpoint of step 6" in log
    report = (tmp_path / "run" / "report.html").read_text()
    assert "training broke at step 7" in report
    for weight in trainer.network.parameters():
        assert torch.isfinite(weight).all()
    # Those that a resumed run skips are told by its checkpoint.
    again, _ = trainer_with(chosen, {}, Limits())
    assert again.resume() and again.skipped == {6, 7} and again.rollbacks == [6]


def test_spikes(tmp_path: Path) -> None:
    """A lone spike is passed over; a row of them sends the run back."""
    data = write_pairs(tmp_path / "pairs")
    limits = Limits(learning=4, patience=2, spike=4.0)
    chosen = settings(tmp_path / "one", data, steps=14, learning_rate=1e-4)
    trainer, _ = trainer_with(chosen, {8: 50.0}, limits)
    trainer.run(Stop())
    assert not trainer.rollbacks and "1 odd batches" in (tmp_path / "one" / "log.txt").read_text()

    chosen = settings(tmp_path / "row", data, steps=14, learning_rate=1e-4)
    trainer, _ = trainer_with(chosen, {10: 50.0, 11: 50.0}, limits)
    trainer.run(Stop())
    assert trainer.rollbacks == [9] and {10, 11} <= trainer.skipped
    assert trainer.step == 14


def test_gives_up_when_it_breaks_again_and_again(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    chosen = settings(tmp_path / "run", data, steps=12)
    always = {place: math.nan for place in range(7, 400)}
    trainer, _ = trainer_with(chosen, always, Limits(at_one_place=2))
    with pytest.raises(TrainingError, match="lower learning rate"):
        trainer.run(Stop())
    assert trainer.checkpoints.steps()  # and a good one is left
    state = trainer.checkpoints.load_latest()
    assert state is not None
    assert all(torch.isfinite(weight).all() for weight in state["network"].values())


def test_a_checkpoint_of_broken_weights_is_left_out(tmp_path: Path) -> None:
    """Broken by the update just before a checkpoint, which is seen only at the next loss."""
    data = write_pairs(tmp_path / "pairs")
    chosen = settings(tmp_path / "run", data, steps=12)
    trainer, _ = trainer_with(chosen, {}, Limits())
    update = trainer._update
    broken_once = []

    def spoil(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        update(pairs)
        if trainer.step == 5 and not broken_once:
            broken_once.append(True)
            with torch.no_grad():
                next(trainer.network.parameters()).fill_(math.nan)

    trainer._update = spoil  # type: ignore[method-assign]
    trainer.run(Stop())
    assert trainer.rollbacks == [3] and trainer.step == 12
    assert all(torch.isfinite(weight).all() for weight in trainer.network.parameters())
