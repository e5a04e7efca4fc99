"""Shards: files of latent pairs, the raw latents of one picture at two sizes.

A shard is one .safetensors file. For its pair number i it has ``{i}.large`` (C, H, W) and
``{i}.small`` (C, h, w), float16 or float32, in the VAE's raw scale. Sizes may differ from pair to
pair, and so may the factor, H/h, which is the same along both sides. Its only metadata entry,
`FORMAT`, is a JSON object of ``space`` (the latent space's id), ``count``, ``vae`` (the file that
encoded it) and ``sources``, a list of each pair's ``picture`` and ``label``. It is only one because
safetensors writes several in a random order, and the same pairs are to give the same file.
"""

from __future__ import annotations

import json
import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..spaces import RAW, SPACES, LatentSpace
from . import whole
from .errors import TrainingError

FORMAT = "latent-pairs-1"
INDEX = "pairs.json"
"""The file beside the shards of a folder that says how they were made."""
_OPEN_FILES = 8


@dataclass(frozen=True)
class Source:
    """Where a pair comes from: its picture's name, and its label, the name of a folder."""

    picture: str
    label: str


@dataclass(frozen=True)
class Pair:
    """Raw latents of one picture: large (C, H, W) and small (C, h, w)."""

    large: Tensor
    small: Tensor
    source: Source


@dataclass(frozen=True)
class PairSize:
    """Heights and widths of a pair's two latents, in latent pixels."""

    large: tuple[int, int]
    small: tuple[int, int]

    @property
    def factor(self) -> Fraction:
        """How much larger the large one is."""
        return Fraction(self.large[0], self.small[0])


def write_shard(path: Path, pairs: Sequence[Pair], space: LatentSpace, vae: str) -> None:
    """Writes pairs to a file, in the type that their tensors have; whole or not at all.

    The same pairs give the same bytes.
    """
    tensors: dict[str, Tensor] = {}
    for index, pair in enumerate(pairs):
        _check(pair, space)
        tensors[f"{index}.large"] = pair.large.clone(memory_format=torch.contiguous_format)
        tensors[f"{index}.small"] = pair.small.clone(memory_format=torch.contiguous_format)
    about = {
        "space": space.id,
        "count": len(pairs),
        "vae": vae,
        "sources": [vars(pair.source) for pair in pairs],
    }
    with whole.replacing(path) as part:
        save_file(tensors, part, {FORMAT: json.dumps(about)})


def _check(pair: Pair, space: LatentSpace) -> None:
    (channels, height, width), (other, h, w) = pair.large.shape, pair.small.shape
    if channels != space.channels or other != channels:
        raise ValueError(f"{space.label} latents have {space.channels} channels, not {channels}")
    if height * w != width * h:
        raise ValueError(f"{height}x{width} and {h}x{w} latents are not of one factor")


class ShardReader:
    """The pairs of many shards, read only where and when they are asked for.

    paths: shard files, and folders of them.
    Every file's header is read at once, numbers later; a few files are open at a time. Can be
    used by several threads. Raises `TrainingError` for what is no shard, and for shards of
    different latent spaces.
    """

    def __init__(self, paths: Path | str | Iterable[Path | str]) -> None:
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        self.files = [file for path in given for file in _shard_files(Path(path))]
        self._starts: list[int] = []
        self._sizes: list[PairSize] = []
        self._sources: list[Source] = []
        spaces: dict[str, Path] = {}
        for file in self.files:
            header = _read_header(file)
            spaces.setdefault(header.space, file)
            self._starts.append(len(self._sizes))
            self._sizes.extend(header.sizes)
            self._sources.extend(header.sources)
        if len(spaces) > 1:
            which = ", ".join(f"{space} in {file}" for space, file in spaces.items())
            raise TrainingError(f"shards of one latent space are wanted together, not of {which}")
        if not self._sizes:
            raise TrainingError(f"no pairs of latents in {', '.join(map(str, given)) or 'nothing'}")
        self.space = SPACES[next(iter(spaces))]
        self.labels = tuple(sorted({source.label for source in self._sources}))
        """The names of all labels; `label` gives positions in this."""
        self._positions = {name: index for index, name in enumerate(self.labels)}
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sizes)

    def sizes(self, index: int) -> PairSize:
        """The sizes of a pair's latents, in latent pixels."""
        return self._sizes[index]

    def source(self, index: int) -> Source:
        """Which picture a pair is of."""
        return self._sources[index]

    def label(self, index: int) -> int:
        """The position of a pair's label in `labels`."""
        return self._positions[self._sources[index].label]

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """A whole pair: small (C, h, w) and large (C, H, W), float32, raw."""
        size = self._sizes[index]
        return (
            self._slice(index, "small", (0, 0), size.small),
            self._slice(index, "large", (0, 0), size.large),
        )

    def small_latents(self, count: int) -> Iterator[Tensor]:
        """The first pairs' (1, C, h, w), float32, in UNet scale; no more than there are."""
        for index in range(min(count, len(self))):
            yield RAW.to(self.space.unet, self.pair(index)[0][None])

    def crop(self, index: int, top: int, left: int, side: int) -> tuple[Tensor, Tensor]:
        """A square of the small latent, (C, side, side), and the same square of the large one.

        All in the small latent's pixels; float32, raw. `top`, `left` and `side`, times the pair's
        factor, must be whole: see `grid`.
        """
        size = self._sizes[index]
        inside = 0 <= top <= size.small[0] - side and 0 <= left <= size.small[1] - side
        scaled = [number * size.factor for number in (top, left, side)]
        if not inside or any(number.denominator != 1 for number in scaled):
            raise ValueError(f"no square of {side} at {top}, {left} in {size}")
        large_top, large_left, large_side = map(int, scaled)
        return (
            self._slice(index, "small", (top, left), (side, side)),
            self._slice(index, "large", (large_top, large_left), (large_side, large_side)),
        )

    def grid(self, index: int) -> int:
        """Small latent pixels that the sides and places of a pair's crops are multiples of."""
        return self._sizes[index].factor.denominator

    def _slice(
        self, index: int, which: str, start: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        number = bisect_right(self._starts, index) - 1
        file, key = self.files[number], f"{index - self._starts[number]}.{which}"
        (top, left), (height, width) = start, size
        with self._lock:
            lazy = self._handle(file).get_slice(key)
            part: Tensor = lazy[:, top : top + height, left : left + width]
        return part.float()

    def _handle(self, file: Path) -> Any:
        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open[file] = safe_open(str(file), "pt", device="cpu")
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[file]


@dataclass(frozen=True)
class _Header:
    space: str
    sizes: Sequence[PairSize]
    sources: Sequence[Source]


def _shard_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    if not path.is_file():
        raise TrainingError(f"{path}: no such file or folder of shards; prepare makes them")
    return [path]


def _read_header(path: Path) -> _Header:
    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"its metadata have no {FORMAT}")
            about = json.loads(metadata[FORMAT])
            sources = [Source(**source) for source in about["sources"]]
            sizes = []
            for index in range(len(sources)):
                _, height, width = file.get_slice(f"{index}.large").get_shape()
                _, h, w = file.get_slice(f"{index}.small").get_shape()
                sizes.append(PairSize((height, width), (h, w)))
            space = about["space"]
            if space not in SPACES:
                raise ValueError(f"it is of a latent space called {space!r}, unknown here")
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path} is no shard of latent pairs: {error}") from error
    return _Header(space, sizes, sources)


def common_factor(reader: ShardReader) -> Fraction | None:
    """The factor of all pairs, or None where they have several."""
    factors = {reader.sizes(index).factor for index in range(len(reader))}
    return factors.pop() if len(factors) == 1 else None


def grid_side(side: int, factor: Fraction) -> int:
    """The largest side, up to `side` small latent pixels, that `factor` makes a whole number."""
    return math.floor(Fraction(side, factor.denominator)) * factor.denominator
