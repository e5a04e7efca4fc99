"""Batches of crops from shards, each a pure function of the seed and the step.

So a run that is resumed at step n gets what it would have got, and many processes share one global
batch: with `world` of them, process number `rank` gets the rows rank, rank + world, ... of it. Two
processes of batch 4 see just what one of batch 8 sees.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .errors import TrainingError
from .shards import ShardReader, grid_side


@dataclass(frozen=True)
class Batch:
    """Rows of one step: raw latents, float32.

    small (B, C, h, h) and large (B, C, H, H) with H/h the step's factor; labels (B,), int64,
    positions in the reader's `labels`.
    """

    small: Tensor
    large: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(
            self.small.to(device, non_blocking=True),
            self.large.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )

    @property
    def factor(self) -> float:
        """The large latents' side over the small ones'."""
        return self.large.shape[-1] / self.small.shape[-1]


@dataclass(frozen=True)
class _Group:
    """The pairs of one factor that a crop of `side` fits in."""

    factor: Fraction
    side: int
    pairs: np.ndarray
    """Their numbers in the reader, int64."""
    ends: np.ndarray
    """Running sums of their weights, float64."""


class PairStream:
    """Random crops of a reader's pairs.

    crop: the side of the small latents in latent pixels. For a factor such as 5/4 it is brought
        down to a multiple of 4, so that the large one's is whole.
    batch: rows that this process gets of every step.
    rank, world: which of how many processes this is.
    factor: only pairs of this factor. Without it, where pairs have several factors, each step has
        one of them, drawn by their weights.
    weighting: "area" draws a pair as often as it has places for the crop, "even" all equally
        often.
    Raises `TrainingError` if there is nothing to draw.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        crop: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        factor: float | Fraction | None = None,
        weighting: str = "area",
    ) -> None:
        if min(crop, batch) < 1 or not 0 <= rank < world:
            raise ValueError(f"crop {crop}, batch {batch}, rank {rank} of {world}")
        if weighting not in ("area", "even"):
            raise TrainingError(f"a weighting is area or even, not {weighting!r}")
        self.reader, self.crop, self.batch_size = reader, crop, batch
        self.seed, self.rank, self.world = seed, rank, world
        self._groups = _groups(reader, crop, factor, weighting)
        self._group_ends = np.cumsum([group.ends[-1] for group in self._groups])
        self.pairs = sum(len(group.pairs) for group in self._groups)
        """How many of the reader's pairs are drawn from."""

    def batch(self, step: int) -> Batch:
        """This process's rows of a step (0, 1, 2, ...)."""
        draw = np.random.default_rng([self.seed, step])
        group = self._groups[_pick(self._group_ends, draw.random())]
        rows = self.batch_size * self.world
        # Three numbers for each row of the global batch, in this order whatever world is.
        numbers = draw.random((rows, 3))[self.rank :: self.world]
        small, large, labels = [], [], []
        for which, down, right in numbers:
            index = int(group.pairs[_pick(group.ends, which)])
            height, width = self.reader.sizes(index).small
            grid = group.factor.denominator
            top = grid * int(down * ((height - group.side) // grid + 1))
            left = grid * int(right * ((width - group.side) // grid + 1))
            one, other = self.reader.crop(index, top, left, group.side)
            small.append(one)
            large.append(other)
            labels.append(self.reader.label(index))
        return Batch(torch.stack(small), torch.stack(large), torch.tensor(labels))

    def batches(self, first: int = 0, *, ahead: int = 2) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from step `first` on, without end.

        ahead: batches that a thread reads in advance, 0 for no thread. The batches are the same.
        """
        if ahead < 1:
            step = first
            while True:
                yield step, self.batch(step)
                step += 1
        read: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(ahead)
        stop = threading.Event()

        def load() -> None:
            step = first
            while not stop.is_set():
                try:
                    item: tuple[int, Batch] | BaseException = step, self.batch(step)
                except BaseException as error:
                    item = error
                while not stop.is_set():
                    try:
                        read.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if isinstance(item, BaseException):
                    return
                step += 1

        thread = threading.Thread(target=load, name="pairs", daemon=True)
        thread.start()
        try:
            while True:
                item = read.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def _pick(ends: np.ndarray, number: float) -> int:
    """Which of the weights, given by their running sums, a number in 0..1 falls on."""
    return min(int(np.searchsorted(ends, number * ends[-1], side="right")), len(ends) - 1)


def _groups(
    reader: ShardReader, crop: int, factor: float | Fraction | None, weighting: str
) -> list[_Group]:
    found: dict[Fraction, list[tuple[int, float]]] = {}
    for index in range(len(reader)):
        size = reader.sizes(index)
        side = grid_side(crop, size.factor)
        if not side or min(size.small) < side:
            continue
        if factor is not None and abs(float(size.factor) - float(factor)) > 1e-6:
            continue
        height, width = size.small
        places = (height - side + 1) * (width - side + 1) if weighting == "area" else 1
        found.setdefault(size.factor, []).append((index, float(places)))
    if not found:
        sizes = [reader.sizes(index) for index in range(len(reader))]
        largest = max(min(size.small) for size in sizes)
        factors = sorted({str(size.factor) for size in sizes})
        raise TrainingError(
            f"no pair has room for a small latent of {crop}x{crop}"
            + ("" if factor is None else f" at factor {float(factor):g}")
            + f": the largest is {largest} wide, the factors are {', '.join(factors[:20])}. "
            "Choose a smaller crop, or prepare larger pairs."
        )
    return [
        _Group(
            one,
            grid_side(crop, one),
            np.array([index for index, _ in pairs]),
            np.cumsum([weight for _, weight in pairs]),
        )
        for one, pairs in sorted(found.items())
    ]
