"""What `train --dry-run` prints: the settings, and what a step will take.

The network is built without memory for its numbers (torch's meta device) and run once on two
pairs, while the products are counted and what is kept for the gradient is added up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..architectures.layers.chunks import chunk_limit
from ..spaces import SPACES
from . import discriminator, networks, optimizers
from .parts import has_adversary
from .recipes import Recipe
from .settings import Settings
from .shards import ShardReader, common_factor

_STATES = {"adamw": 2, "adam": 2, "sgd": 1, "lamb": 2, "prodigy": 4}
"""Numbers that an optimizer keeps for each weight; two where it is not here."""


@dataclass(frozen=True)
class Estimate:
    """parameters: of the network. flops: of its forward pass, a pair. kept: bytes that a pair's
    forward pass keeps for the gradient. fixed: bytes of weights, gradients, optimizer, average."""

    parameters: int
    flops: int
    kept: int
    fixed: int


def describe(settings: Settings) -> str:
    """The text of a dry run. Raises `TrainingError` as the run itself would, early."""
    recipe = settings.recipe
    space, factor, lines = SPACES[recipe.space], float(recipe.factor or 2), []
    if settings.data:
        reader = ShardReader(settings.data)
        space = reader.space
        factor = float(recipe.factor or common_factor(reader) or 2)
        lines.append(f"data: {len(reader)} pairs of {space.label} in {len(reader.files)} shards")
    else:
        lines.append(f"data: none given (--data); sizes are those for {space.label}")
    found = estimate(recipe, space.channels, factor)
    optimizers.build(recipe.optimizer, [nn.Parameter(torch.zeros(1))], 1.0, {})
    optimizers.RateSchedule(recipe.schedule, recipe.steps, recipe.warm_up)
    recipe.input_scale(space)
    rows = recipe.batch * recipe.accumulation
    samples = rows * recipe.steps * recipe.processes
    work = 3 * found.flops * rows
    memory = found.fixed + recipe.batch * found.kept
    told: dict[str, Any] = {**recipe.as_json()}
    told["network"]["parameters"] = networks.resolved(recipe.network, space.channels, factor)
    told |= {k: v for k, v in vars(settings).items() if k != "recipe"}
    lines = [
        json.dumps(told, indent=1, default=list),
        *lines,
        f"network: {found.parameters:,} parameters",
        f"a pair of {recipe.crop}x{recipe.crop}: {found.flops / 1e9:.2f} GFLOP forward (products "
        "and convolutions), about three times that with the gradients",
        f"a step of {rows} pairs: about {work / 1e9:,.0f} GFLOP; {recipe.steps:,} steps on "
        f"{recipe.processes} process(es): {samples:,} pairs, {work * recipe.steps / 1e15:,.2f} "
        "PFLOP each",
        f"memory of a process: about {memory / 2**30:.2f} GiB ({found.fixed / 2**30:.2f} GiB for "
        f"weights, gradients, {recipe.optimizer} and the average, {found.kept / 2**20:.1f} MiB for "
        "each pair of a batch), and what torch itself takes",
    ]
    if any(term.on == "picture" for term in recipe.terms):
        lines.append(
            "losses on pictures: the VAE's decoding comes on top, the most of it for a VAE"
        )
    return "\n".join(lines)


def estimate(recipe: Recipe, channels: int, factor: float) -> Estimate:
    """What a step of a recipe takes."""
    spec = recipe.network.untrained
    # Without memory for its numbers, which not all of spandrel's can be.
    device = "meta" if spec.architecture in networks.OWN else "cpu"
    with torch.device(device):
        network = networks.build(spec, channels, factor)
    parameters = sum(one.numel() for one in network.parameters())
    states = 2 + _STATES.get(recipe.optimizer, 2) + (1 if recipe.ema else 0)
    fixed = 4 * states * parameters
    half = recipe.precision == "bf16"
    network.to(_dtype(half))
    side = round(recipe.crop * factor)
    small = torch.zeros(2, channels, recipe.crop, recipe.crop, device=device, dtype=_dtype(half))
    kept = _Kept(network)
    with (
        chunk_limit(1 << 50),
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x),
    ):
        result = network(small, (side, side))
    flops = counter.get_total_flops() // 2
    pair = kept.bytes // 2
    if has_adversary(recipe.terms):
        with torch.device(device):
            adversary = discriminator.build(channels).to(_dtype(half))
        numbers = sum(one.numel() for one in adversary.parameters())
        fixed += 4 * 4 * numbers
        kept = _Kept(adversary)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
            adversary(result.detach())
        pair += kept.bytes
    return Estimate(parameters, flops, pair, fixed)


def _dtype(half: bool) -> torch.dtype:
    return torch.bfloat16 if half else torch.float32


class _Kept:
    """Adds up the bytes that are kept for the gradient, each storage once, the weights not."""

    def __init__(self, network: nn.Module) -> None:
        self.bytes = 0
        self._seen = {one.untyped_storage()._cdata for one in network.parameters()}
        self._held: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._seen:
            self._seen.add(key)
            self._held.append(tensor)  # so that no other storage gets the same number
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor
