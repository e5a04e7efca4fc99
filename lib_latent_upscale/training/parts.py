"""What a run is made of, built from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..spaces import RAW, LatentScale
from . import discriminator, distributed, networks, optimizers
from .criterion import Criterion, Term
from .discriminator import Adversary
from .distributed import Process
from .errors import TrainingError
from .settings import Settings
from .shards import ShardReader, common_factor
from .stream import PairStream
from .vae import Vae, open_vae
from .validation import Validation, hold_out


@dataclass
class Parts:
    """A run's parts. `adversary` is there where a loss is adversarial, `validation` in the first
    process, where there are pairs for it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    adversary: Adversary | None
    stream: PairStream
    scale: LatentScale
    reader: ShardReader
    validation: Validation | None
    factor: float | None


def assemble(settings: Settings, process: Process) -> Parts:
    """Builds all of it. Raises `TrainingError` for whatever is wrong with files or settings."""
    recipe = settings.recipe
    whole = ShardReader(settings.data)
    reader, held = whole, None
    if settings.validation:
        held = ShardReader(settings.validation)
        if held.space != whole.space:
            raise TrainingError(
                f"the validation pairs are of {held.space.label}, the others of {whole.space.label}"
            )
    else:
        reader, held = hold_out(whole, settings.validation_pairs)
    scale = recipe.input_scale(reader.space)
    factor = recipe.factor or common_factor(reader)
    torch.manual_seed(settings.seed)
    network = networks.build(recipe.network, reader.space.channels, float(factor or 2))
    if getattr(network, "scale", None) is None:
        factor = recipe.factor  # it takes any size
    network = network.to(process.device)
    distributed.share_first(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stream = PairStream(
        reader,
        crop=recipe.crop,
        batch=recipe.batch,
        seed=settings.seed,
        rank=process.rank,
        world=process.world,
        factor=factor,
        weighting=recipe.weighting,
    )
    vae = _vae(settings, reader, process)
    adversary = _adversary(settings, reader, process)
    criterion = Criterion(
        complete_terms(settings),
        vae=vae,
        discriminator=adversary,
        to_raw=None if scale == RAW else lambda latents: scale.to(RAW, latents),
        space=reader.space,
        decode_batch=1 if process.device.type == "cpu" and not recipe.picture_side else None,
        picture_side=recipe.picture_side or None,
        picture_squares=recipe.picture_squares,
    ).to(process.device)
    validation = None
    if held is not None and process.is_first and settings.validation_pairs:
        validation = Validation(
            held,
            pairs=settings.validation_pairs,
            factor=float(factor) if factor is not None else None,
            scale=scale,
            vae=vae,
            device=process.device,
        )
    optimizer = optimizers.build(
        recipe.optimizer, network.parameters(), recipe.learning_rate, recipe.optimizer_options
    )
    return Parts(
        network,
        optimizer,
        criterion,
        adversary,
        stream,
        scale,
        reader,
        validation,
        float(factor) if factor is not None else None,
    )


def complete_terms(settings: Settings) -> tuple[Term, ...]:
    """The recipe's losses with the files that some of them want."""

    def complete(term: Term) -> Term:
        options = dict(term.options)
        if term.loss == "contextual" and "features" not in options:
            if not settings.features:
                raise TrainingError(
                    "the contextual loss compares the features of a classifier of latents: train "
                    "one (python -m lib_latent_upscale.training classifier --help) and give its "
                    "file as --features, or choose losses by --loss"
                )
            options["features"] = settings.features
        if term.loss == "lpips" and settings.lpips:
            options["weights"] = settings.lpips
        return replace(term, options=options)

    return tuple(complete(term) for term in settings.recipe.terms)


def _vae(settings: Settings, reader: ShardReader, process: Process) -> Vae | None:
    path, other = settings.vae, settings.decoder
    if not path and not other:
        return None
    return open_vae(
        Path(path or other),
        reader.space,
        Path(other) if path and other else None,
        device=process.device,
        precision=settings.recipe.precision,
    )


def _adversary(settings: Settings, reader: ShardReader, process: Process) -> Adversary | None:
    if not has_adversary(settings.recipe.terms):
        return None
    name = settings.recipe.discriminator
    network = discriminator.build(reader.space.channels, name).to(process.device)
    distributed.share_first(network)
    return Adversary(
        network,
        torch.optim.AdamW(network.parameters(), lr=settings.recipe.discriminator_rate),
        precision=torch.bfloat16 if settings.recipe.precision == "bf16" else torch.float32,
        average=lambda network: distributed.average_gradients(network.parameters()),
    )


def has_adversary(terms: Sequence[Term]) -> bool:
    """Whether a discriminator is trained, too."""
    return any(term.loss == "adversarial" for term in terms)
