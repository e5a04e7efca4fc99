"""Train a network by a recipe, on pairs of latents.

    python -m lib_latent_upscale.training train --recipe compact --data pairs/ --out runs/first

The pairs are what the command prepare makes. A run has a folder: its checkpoints, curve, samples
and report are in it, and the weights, averaged over the last steps, as weights/best.safetensors and
weights/latest.safetensors. Stop it with Ctrl-C, or by --time-limit, and go on with --resume; a run
that was killed goes on from its last checkpoint, and ends with the very weights that it would have
had. Any setting of a recipe can be another: see --list-recipes, --dry-run and --set.

On several GPUs: torchrun --nproc-per-node 2 -m lib_latent_upscale.training train ... (or accelerate
launch). The batch is each process's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import torch

from . import distributed, recipes, settings
from .errors import TrainingError
from .recipe_book import RECIPES
from .recipes import Recipe
from .settings import Settings

_SHORTCUTS = {
    "steps": "how many",
    "batch": "pairs in each step, of each process",
    "accumulation": "batches whose gradients make one step",
    "crop": "side of the small latents, in latent pixels (8 pixels of the picture)",
    "precision": "bf16 or fp32",
    "optimizer": "adamw, lamb, prodigy, or any of pytorch_optimizer's",
    "learning_rate": "its peak",
    "schedule": "constant, cosine or one-cycle",
    "warm_up": "steps over which the learning rate rises",
    "ema": "decay of the average of the weights, 0 for none",
    "clip": "largest norm of the gradient, 0 for no limit",
}
"""Settings of a recipe that have an option of their own, and what they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    add = parser.add_argument
    add("--recipe", metavar="NAME", help="which, see --list-recipes (default: compact)")
    add("--data", nargs="+", metavar="SHARDS", help="shard files or folders of them, by prepare")
    add("--out", metavar="DIR", help="the run's folder, made if it is not there")
    add("--resume", action="store_true",
        help="go on with the run in --out; what it was started with is known, and options given "
        "now go before it")  # fmt: skip
    add("--list-recipes", action="store_true", help="print the recipes and stop")
    add("--dry-run", action="store_true",
        help="print all settings, the network's size, and the work and memory that a step takes; "
        "train nothing, write nothing")  # fmt: skip

    group = parser.add_argument_group("settings of the recipe")
    for name, words in _SHORTCUTS.items():
        group.add_argument("--" + name.replace("_", "-"), metavar="VALUE", help=words)
    group.add_argument("--loss", action="append", metavar="NAME=WEIGHT[,...]",
        help="a loss in place of the recipe's, several times for several: l1=0.08, "
        "fft=1,start=1000, l1=1,on=picture (of decoded latents), huber=1,delta=0.1")  # fmt: skip
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
        help="any setting: factor=1.5, scale=unet, network.dim=24, network.depths=2,2, "
        "network.weights=FILE (begin from these), network.dropout=0.5, "
        "optimizer.weight_decay=1e-4")  # fmt: skip

    group = parser.add_argument_group("what the losses and the figures need")
    add = group.add_argument
    add("--validate", nargs="+", metavar="SHARDS",
        help="pairs to measure on; without them some pictures of --data are held out")  # fmt: skip
    add("--validation-pairs", type=int, metavar="N", help="how many at most (default: 64)")
    add("--vae", metavar="FILE",
        help="the VAE of the latents: for losses on pictures, PSNR, samples")  # fmt: skip
    add("--decoder", metavar="FILE", help="TAESD's decoder, alone or beside its encoder as --vae")
    add("--features", metavar="FILE", help="classifier of latents, for the contextual loss")
    add("--lpips", metavar="FILE", help="weights of LPIPS's network (torchvision's VGG16)")

    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--seed", type=int, metavar="N", help="of all random numbers (default: 0)")
    add(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)"
    )
    add("--backend", metavar="NAME", help="of several processes: nccl or gloo")
    add("--threads", type=int, metavar="N", help="of the CPU (default: torch's choice)")
    add("--time-limit", type=float, metavar="MINUTES",
        help="stop then, with a checkpoint; 0 for no limit")  # fmt: skip
    for name, words in (
        ("log", "a line of the log"),
        ("validate", "figures on the validation pairs"),
        ("sample", "decoded samples"),
        ("checkpoint", "a checkpoint"),
    ):
        default = {field.name: field.default for field in dataclasses.fields(Settings)}
        add(f"--{name}-every", type=int, metavar="STEPS",
            help=f"{words} every so many steps, 0 for never (default: {default[name + '_every']})"
        )  # fmt: skip
    add("--keep", type=int, metavar="N", help="checkpoints that stay (default: 2)")
    add("--compile", action="store_true", default=None, help="torch.compile the network")


def run(options: argparse.Namespace) -> int:
    """Trains as the options say. Raises `TrainingError` for what the user can put right."""
    if options.list_recipes:
        print(list_recipes())
        return 0
    chosen = _settings(options)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if options.dry_run:
        from .estimate import describe

        print(describe(chosen))
        return 0
    return _train(chosen, options.resume)


def _train(chosen: Settings, resume: bool) -> int:
    from .parts import assemble
    from .stopping import Stop
    from .trainer import Trainer

    process = distributed.start(chosen.device, chosen.backend)
    try:
        if process.device.type == "cpu":
            _same_result_every_time()
        else:
            torch.set_float32_matmul_precision("high")
        trainer = Trainer(chosen, process, assemble(chosen, process))
        if resume and not trainer.resume():
            trainer.monitor.say("there is no checkpoint yet: beginning")
        if process.is_first:
            chosen.save()
        with Stop(chosen.time_limit) as stop:
            outcome = trainer.run(stop)
        if outcome == "stopped":
            trainer.monitor.say(f"stopped because {stop.reason}; go on with --resume")
    finally:
        distributed.stop()
    return 0


def _same_result_every_time() -> None:
    """Some gradients are sums over threads in whichever order they come, unless forbidden."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    if hasattr(torch.utils, "deterministic"):  # torch 2.1 fills no memory, and has no such switch
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _settings(options: argparse.Namespace) -> Settings:
    """What the options say, with the defaults, or with what the run began with."""
    if options.resume:
        if not options.out:
            raise TrainingError("--resume: name the run's folder as --out")
        before = settings.load(Path(options.out))
        if options.recipe not in (None, before.recipe.name):
            raise TrainingError(f"the run in {options.out} is of the recipe {before.recipe.name}")
        chosen = _with_options(before, options)
        settings.check_same_training(chosen, before)
        return chosen
    name = options.recipe or "compact"
    if name not in RECIPES:
        raise TrainingError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    for needed in ("data", "out"):
        if not getattr(options, needed) and not options.dry_run:
            raise TrainingError(f"--{needed} is missing; see --help")
    chosen = _with_options(Settings(RECIPES[name], options.out or "run", ()), options)
    if not options.dry_run and (chosen.folder / settings.FILE).exists():
        raise TrainingError(
            f"there is a run in {chosen.folder} already: go on with it by --resume, or name "
            "another folder as --out"
        )
    return chosen


def _with_options(base: Settings, options: argparse.Namespace) -> Settings:
    recipe = _recipe(base.recipe, options)
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(options, field.name, None) is not None and field.name not in ("recipe", "out")
    }
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    if options.validate:
        given["validation"] = tuple(options.validate)
    return replace(base, recipe=recipe, out=options.out or base.out, **given)


def _recipe(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    for name in _SHORTCUTS:
        value = getattr(options, name)
        if value is not None:
            recipe = recipes.override(recipe, name, value)
    for key, value in recipes.parse_settings(options.set):
        recipe = recipes.override(recipe, key, value)
    if options.loss:
        recipe = replace(recipe, terms=tuple(map(recipes.parse_term, options.loss)))
    return recipe


def list_recipes() -> str:
    """All recipes with what makes them, and their notes."""
    lines = []
    for recipe in RECIPES.values():
        terms = " + ".join(
            f"{term.name} x {term.weight:g}" + (f" from step {term.start}" if term.start else "")
            for term in recipe.terms
        )
        lines += [
            f"{recipe.name}: {recipe.summary}",
            f"    {terms}; {recipe.optimizer} {recipe.learning_rate:g}, {recipe.schedule}; batch "
            f"{recipe.batch}"
            + (f" on {recipe.processes} GPUs" if recipe.processes > 1 else "")
            + f", {recipe.steps} steps, {recipe.precision}",
        ]
        if recipe.network.parameters:
            lines.append(f"    network: {json.dumps(dict(recipe.network.parameters))}")
        lines.append(f"    {recipe.notes} Source: {recipe.source}")
    return "\n".join(lines)
