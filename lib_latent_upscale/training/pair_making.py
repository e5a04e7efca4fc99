"""Pictures to pairs of latents: reading, encoding, and cutting the margins off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from . import pictures
from .pair_jobs import Cutting, Job, cut, jobs
from .pair_plan import Looked
from .parallel import ordered_map
from .shards import Pair, Source, write_shard
from .vae import Vae

_WAITING = 64_000_000
"""Pixels that wait for others of their size before they are encoded anyway."""


@dataclass(frozen=True)
class Maker:
    """Makes the shards.

    batch: pictures that are encoded at once, where they have one size.
    dtype: the type of the latents in the shards.
    backing: the colour behind transparent pictures, or "random".
    report: called with a picture's name and why it gave nothing.
    progress: called with pairs and pixels encoded since the last call.
    """

    vae: Vae
    cutting: Cutting
    batch: int
    dtype: torch.dtype
    backing: str
    device: torch.device
    report: Callable[[str, str], None]
    progress: Callable[[int, int], None]

    def make(self, path: Path, shard: Sequence[Looked], pool: Executor, workers: int) -> int:
        """Makes a shard, whole or not at all; returns its number of pairs."""
        done: dict[tuple[int, int], Pair] = {}
        waiting: dict[tuple[int, ...], list[_Item]] = {}
        pixels = 0
        for item in self._items(shard, pool, workers):
            key = (*item.large.shape, *item.small.shape)
            waiting.setdefault(key, []).append(item)
            pixels += item.large.shape[1] * item.large.shape[2]
            if len(waiting[key]) >= self.batch:
                pixels -= self._encode(waiting.pop(key), done)
            while pixels > _WAITING:
                pixels -= self._encode(waiting.pop(max(waiting, key=lambda k: k[1] * k[2])), done)
        for items in waiting.values():
            self._encode(items, done)
        write_shard(path, [done[place] for place in sorted(done)], self.vae.space, self.vae.name)
        return len(done)

    def _items(self, shard: Sequence[Looked], pool: Executor, workers: int) -> Iterator[_Item]:
        loaded = ordered_map(pool, self._load, shard, 2 * workers)
        for number, (looked, cuts) in enumerate(zip(shard, loaded)):
            source = Source(looked.name, looked.label)
            for index, (job, large, small) in enumerate(cuts):
                yield _Item((number, index), source, job, large, small)

    def _load(self, looked: Looked) -> list[tuple[Job, Tensor, Tensor]]:
        colour = pictures.backing_colour(self.backing, Random(f"backing/{looked.name}"))
        try:
            picture = pictures.read(looked.file, colour, self.cutting.fit or None)
        except pictures.UNREADABLE as error:
            self.report(looked.name, f"unreadable by now: {error}")
            return []
        work = jobs(looked.name, (looked.width, looked.height), self.cutting)
        cuts = cut(picture, work)
        if len(cuts) < len(work):
            self.report(looked.name, f"{len(work) - len(cuts)} of {len(work)} crops are plain")
        return cuts

    def _encode(self, items: list[_Item], done: dict[tuple[int, int], Pair]) -> int:
        """Encodes items of one size into `done`; returns their large pictures' pixels."""
        large = self._latents([item.large for item in items], [item.job.seeds[0] for item in items])
        small = self._latents([item.small for item in items], [item.job.seeds[1] for item in items])
        for item, one, other in zip(items, large, small):
            large_margin, margin = item.job.margins
            done[item.place] = Pair(
                _inside(one, large_margin).to(self.dtype),
                _inside(other, margin).to(self.dtype),
                item.source,
            )
        sides = [item.large.shape[1] * item.large.shape[2] for item in items]
        small_sides = [item.small.shape[1] * item.small.shape[2] for item in items]
        self.progress(len(items), sum(sides) + sum(small_sides))
        return sum(sides)

    def _latents(self, some: list[Tensor], seeds: list[int]) -> Tensor:
        batch = pictures.to_range(torch.stack(some).to(self.device))
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        return self.vae.encode(batch, generators).cpu()


@dataclass(frozen=True)
class _Item:
    """place: the numbers of the picture in the shard and of the pair in the picture."""

    place: tuple[int, int]
    source: Source
    job: Job
    large: Tensor
    small: Tensor


def _inside(latent: Tensor, margin: int) -> Tensor:
    height, width = latent.shape[-2:]
    return latent[:, margin : height - margin, margin : width - margin]
