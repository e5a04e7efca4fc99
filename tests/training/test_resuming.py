"""A run that was killed and goes on ends with the very weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_latent_upscale.training import settings as settings_of
from lib_latent_upscale.training.__main__ import main
from lib_latent_upscale.training.checkpoints import Checkpoints, write_whole
from lib_latent_upscale.training.distributed import Process
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.parts import assemble
from lib_latent_upscale.training.settings import Settings
from lib_latent_upscale.training.stopping import Stop
from lib_latent_upscale.training.trainer import Trainer

from .tiny import settings, write_pairs

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]


class Interrupted(Exception):
    pass


class AfterSteps(Stop):
    """Stops, or dies, after so many steps."""

    def __init__(self, steps: int, *, dies: bool) -> None:
        super().__init__()
        self.left, self.dies = steps, dies

    def wanted(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.dies:
            raise Interrupted
        return self.left <= 0 and not self.dies


def trainer_of(chosen: Settings) -> Trainer:
    process = Process(torch.device("cpu"))
    return Trainer(chosen, process, assemble(chosen, process))


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All tensors that a run ends with, by where they are."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                collect(f"{name}.{key}", part)
        elif isinstance(value, (list, tuple)):
            for key, part in enumerate(value):
                collect(f"{name}.{key}", part)

    state = trainer.state_dict()
    collect("", {key: state[key] for key in ("network", "ema", "optimizer", "adversary")})
    return found


def same(one: Trainer, other: Trainer) -> bool:
    mine, others = everything(one), everything(other)
    return mine.keys() == others.keys() and all(torch.equal(mine[k], others[k]) for k in mine)


RUNS = {
    "adamw, dropout, accumulation": {"accumulation": 2, "dropout": 0.5},
    "prodigy, bf16": {"optimizer": "prodigy", "learning_rate": 1.0},
    "lamb": {"optimizer": "lamb"},
    "adversarial": {"adversarial": True},
}


def chosen_run(name: str, out: Path, data: Path) -> Settings:
    changes = dict(RUNS[name])
    if changes.get("optimizer"):
        pytest.importorskip("pytorch_optimizer")
    dropout, adversarial = changes.pop("dropout", 0.0), changes.pop("adversarial", False)
    chosen = settings(out, data, steps=14, **changes)
    recipe = replace(chosen.recipe, network=replace(chosen.recipe.network, dropout=dropout))
    if adversarial:
        pytest.importorskip("timm")
        terms = (*recipe.terms, type(recipe.terms[0])("adversarial", 0.01))
        recipe = replace(recipe, terms=terms, batch=4, steps=7)
    return replace(chosen, recipe=recipe)


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_anywhere(name: str, tmp_path: Path) -> None:
    """By a crash after each step in turn, again and again, and by a stop."""
    data = write_pairs(tmp_path / "pairs")
    straight = trainer_of(chosen_run(name, tmp_path / "straight", data))
    assert straight.run(Stop()) == "finished"

    chosen = chosen_run(name, tmp_path / "broken", data)
    crashes = (2, 4) if name == "adversarial" else (1, 2, 3, 4, 5)
    for steps in crashes:
        trainer = trainer_of(chosen)
        trainer.resume()
        with pytest.raises(Interrupted):
            trainer.run(AfterSteps(steps, dies=True))
    trainer = trainer_of(chosen)
    assert trainer.resume()
    assert trainer.run(AfterSteps(1, dies=False)) == "stopped"
    trainer = trainer_of(chosen)
    assert trainer.resume()
    assert trainer.run(Stop()) == "finished"
    assert trainer.step == straight.step == straight.settings.recipe.steps
    assert same(trainer, straight)


def test_steps_differ(tmp_path: Path) -> None:
    """That the comparison above can fail: one step more, or another seed, is another network."""
    data = write_pairs(tmp_path / "pairs")
    one, other, third = (
        trainer_of(settings(tmp_path / str(index), data, steps=3 + (index == 1), seed=index // 2))
        for index in range(3)
    )
    for trainer in (one, other, third):
        trainer.run(Stop())
    assert not same(one, other) and not same(one, third)


def test_a_killed_process(tmp_path: Path) -> None:
    """SIGKILL at three moments of real processes, whatever they are at then."""
    data = write_pairs(tmp_path / "pairs")
    common = [
        "train", "--recipe", "compact", "--data", str(data), "--steps", "60", "--batch", "2",
        "--crop", "8", "--set", "network.dim=8", "--set", "network.depth=2", "--threads", "1",
        "--checkpoint-every", "7", "--validate-every", "20", "--log-every", "1",
        "--sample-every", "0", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lib_latent_upscale.training"]

    def start(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, *common, "--out", str(tmp_path / "killed"), *more],
            env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    assert main([*common, "--out", str(tmp_path / "straight")]) == 0
    for kill, wanted in enumerate((9, 25, 41)):
        process = start(*(["--resume"] if kill else []))
        while process.poll() is None and reached(tmp_path / "killed") < wanted:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert start("--resume").wait() == 0
    one, other = (Checkpoints(tmp_path / run / "checkpoints") for run in ("straight", "killed"))
    assert one.steps()[-1] == other.steps()[-1] == 60
    straight, killed = one.load_latest(), other.load_latest()
    assert straight is not None and killed is not None
    for part in ("network", "ema"):
        for key, value in straight[part].items():
            assert torch.equal(value, killed[part][key]), key
    files = [tmp_path / run / "weights" / "best.safetensors" for run in ("straight", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [
        [line["step"] for line in map(json.loads, (tmp_path / run / "curve.jsonl").open())
         if line["kind"] == "train"]
        for run in ("straight", "killed")
    ]  # fmt: skip
    assert lines[0] == lines[1] == list(range(1, 61))


def reached(run: Path) -> int:
    """The step that the last whole line of a run's curve tells of."""
    try:
        return int(json.loads((run / "curve.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.load_latest() is None
    for step in (1, 2, 3):
        checkpoints.save({"step": step}, step)
    assert checkpoints.steps() == [2, 3]
    whole = (tmp_path / "checkpoints" / "step-00000003.pt").read_bytes()
    (tmp_path / "checkpoints" / "step-00000003.pt").write_bytes(whole[: len(whole) // 2])
    state = checkpoints.load_latest()
    assert state is not None and state["step"] == 2
    (tmp_path / "checkpoints" / "step-00000002.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match="no checkpoint can be read"):
        checkpoints.load_latest()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_whole(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        write_whole(path, {"step": lambda: None})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["state.pt"]


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    chosen = settings(tmp_path / "run", data, steps=3)
    trainer_of(chosen).run(Stop())
    chosen.save()
    assert settings_of.load(tmp_path / "run") == chosen
    run = ["train", "--resume", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*run, "--steps", "5", "--learning-rate", "1e-4"]) == 0
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 5
    for options in (["--set", "network.dim=16"], ["--batch", "3"], ["--loss", "mse"]):
        assert main([*run, *options]) == 2
    assert main([*run, "--seed", "5"]) == 2
    assert main(["train", "--resume", "--out", str(tmp_path / "none")]) == 2
    again = ["train", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(again) == 2, "a run is not begun over another"


def test_time_limit_and_ctrl_c(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs")
    trainer = trainer_of(settings(tmp_path / "run", data, steps=10_000))
    assert trainer.run(Stop(minutes=0.01)) == "stopped"
    assert 0 < trainer.step < 10_000
    assert trainer.checkpoints.steps()[-1] == trainer.step
    assert (tmp_path / "run" / "weights" / "latest.safetensors").is_file()
    assert "Stopped at step" in (tmp_path / "run" / "report.html").read_text()
    with Stop() as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
