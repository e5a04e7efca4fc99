"""Small networks, pairs and runs for the tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lib_latent_upscale.spaces import SPACES
from lib_latent_upscale.training.networks import NetworkSpec
from lib_latent_upscale.training.recipe_book import RECIPES
from lib_latent_upscale.training.settings import Settings
from lib_latent_upscale.training.shards import Pair, Source, write_shard

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "dat": {"dim": 32, "depths": (3,), "heads": 2, "tail_dim": 8, "split_size": (2, 4)},
    "craft": {"dim": 32, "depths": (1, 1), "heads": 2, "split_size": (2, 4)},
    "swinfir": {"dim": 12, "depths": (2,), "heads": 2, "window": 4, "tail_dim": 8},
    "drct": {
        "dim": 12, "groups": 1, "growth": 4, "heads": (2, 2, 2, 2, 2), "window": 4, "tail_dim": 8,
    },
    "city96": {"dim": 8, "depth": 2},
    "ttl": {
        "dim": 32, "embedding_dim": 8, "in_blocks": (False, True), "out_blocks": (True, False)
    },
    "compact": {"dim": 8, "depth": 2},
    "halfway": {"dim": 8, "coarse": 1, "fine": 2, "folding": 1},
    "HAT": {
        "embed_dim": 12, "depths": (2,), "num_heads": (2,), "window_size": 4, "num_feat": 8,
        "squeeze_factor": 4,
    },
    "DITN": {"dim": 8, "ITL_blocks": 1, "SAL_blocks": 1},
    "OmniSR": {"num_feat": 16, "res_num": 1, "window_size": 4},
    "GRL": {
        "embed_dim": 24, "upsampler": "pixelshuffle", "depths": (2,), "num_heads_window": (1,),
        "num_heads_stripe": (1,), "window_size": 4, "stripe_size": (4, 4),
    },
}  # fmt: skip
"""Parameters of each network that make it small."""


def shrunk(spec: NetworkSpec) -> NetworkSpec:
    """The same network, small."""
    return replace(spec, parameters={**spec.parameters, **NETWORKS[spec.architecture]})


def write_pairs(
    folder: Path,
    count: int = 12,
    *,
    side: int = 16,
    factor: float = 2,
    space: str = "sd15",
    shards: int = 2,
    seed: int = 0,
) -> Path:
    """Shards of made-up latents: noise with detail that the small one lacks, raw scale."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    channels = SPACES[space].channels
    large_side = round(side * factor)
    pairs = []
    for index in range(count):
        coarse = torch.randn(1, channels, 6, 6, generator=generator)
        fine = torch.randn(1, channels, large_side // 2, large_side // 2, generator=generator)
        large = F.interpolate(coarse, size=large_side, mode="bicubic")
        large = 4 * (large + 0.3 * F.interpolate(fine, size=large_side, mode="bicubic"))
        small = F.interpolate(large, size=side, mode="bilinear", antialias=True)
        source = Source(f"picture-{seed}-{index}.png", "ab"[index % 2])
        pairs.append(Pair(large[0].half(), small[0].half(), source))
    each = -(-count // shards)
    for shard in range(shards):
        some = pairs[shard * each : (shard + 1) * each]
        write_shard(folder / f"{shard}.safetensors", some, SPACES[space], "made up")
    return folder


def settings(out: Path, data: Path | Sequence[Path], **changes: Any) -> Settings:
    """A run of a tiny compact network; `changes` are of the settings, or else of the recipe."""
    folders = [data] if isinstance(data, Path) else data
    recipe = RECIPES["compact"]
    recipe = replace(
        recipe, network=shrunk(recipe.network), batch=2, crop=8, steps=8, warm_up=0, ema=0.9
    )
    of_run = {key: changes.pop(key) for key in list(changes) if key in Settings.__annotations__}
    recipe = replace(of_run.pop("recipe", recipe), **changes)
    base = Settings(
        recipe, str(out), tuple(map(str, folders)), device="cpu", validation_pairs=1,
        log_every=1, validate_every=0, sample_every=0, checkpoint_every=3, threads=1,
    )  # fmt: skip
    return replace(base, **of_run)
