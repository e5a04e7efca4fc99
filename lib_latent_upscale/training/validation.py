"""How good the network is on pairs that it is not trained on, while it is trained."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..preview import load_preview_decoder
from ..spaces import RAW, LatentScale, LatentSpace
from . import metrics, sheets
from .errors import TrainingError
from .idle import IdleChannels
from .shards import PairSize, ShardReader, Source, grid_side
from .vae import Vae, to_images

_SIDE = 48
"""Small latent pixels of the largest square that is looked at: a picture of 768 pixels at 2x."""
_SAMPLES = 4


class Part(ShardReader):
    """Some of a reader's pairs, as a reader of their own."""

    def __init__(self, whole: ShardReader, indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, indices
        self.files, self.space, self.labels = whole.files, whole.space, whole.labels

    def __len__(self) -> int:
        return len(self._indices)

    def sizes(self, index: int) -> PairSize:
        return self._whole.sizes(self._indices[index])

    def source(self, index: int) -> Source:
        return self._whole.source(self._indices[index])

    def label(self, index: int) -> int:
        return self._whole.label(self._indices[index])

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        return self._whole.pair(self._indices[index])

    def crop(self, index: int, top: int, left: int, side: int) -> tuple[Tensor, Tensor]:
        return self._whole.crop(self._indices[index], top, left, side)

    def grid(self, index: int) -> int:
        return self._whole.grid(self._indices[index])


def hold_out(reader: ShardReader, pairs: int) -> tuple[ShardReader, ShardReader | None]:
    """The pairs to train on and those to measure on: about `pairs`, one in eight at most.

    By pictures, so that no picture is in both; which ones depends on their names alone. None where
    there are too few pairs to hold any out.
    """
    wanted = min(pairs, len(reader) // 8)
    if wanted < 1:
        return reader, None
    pictures: dict[str, list[int]] = {}
    for index in range(len(reader)):
        source = reader.source(index)
        pictures.setdefault(f"{source.label}/{source.picture}", []).append(index)
    held: list[int] = []
    for name in sorted(pictures, key=lambda name: (zlib.crc32(name.encode()), name)):
        if len(held) >= wanted:
            break
        if len(held) + len(pictures[name]) <= 2 * wanted:
            held += pictures[name]
    if not held or len(held) == len(reader):
        return reader, None
    chosen = set(held)
    rest = [index for index in range(len(reader)) if index not in chosen]
    return Part(reader, rest), Part(reader, sorted(held))


@dataclass(frozen=True)
class _Case:
    small: Tensor
    large: Tensor
    title: str


class Validation:
    """Measures a network on the middle of each of some pairs.

    pairs: how many at most, spread evenly over the reader's.
    scale: of the latents that the network takes.
    vae: decodes for the PSNR; without one there is none, and samples are by the small decoder of
        the space.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        pairs: int,
        factor: float | None,
        scale: LatentScale,
        vae: Vae | None,
        device: torch.device,
    ) -> None:
        self.scale, self.vae, self.device, self.space = scale, vae, device, reader.space
        self.cases = _cases(reader, pairs, factor)
        self._preview = load_preview_decoder(reader.space) if vae is None else None

    @property
    def criterion(self) -> tuple[str, bool]:
        """The figure that tells which weights are best, and whether more is better."""
        return ("psnr", True) if self.vae is not None else ("l1", False)

    @torch.no_grad()
    def measure(self, network: nn.Module) -> dict[str, float]:
        """Means over the pairs: `l1` and `mse` of the latents in UNet scale, and `psnr` in dB of
        the decoded latent against the decoded large one; and `idle`, the network's share of idle
        channels."""
        channels = IdleChannels()
        with channels.watched(network):
            predicted = [self._predict(network, case) for case in self.cases]
        figures = self._mean([self._figures(*one) for one in zip(self.cases, predicted)])
        return {**figures, "idle": channels.share}

    @torch.no_grad()
    def bicubic(self) -> dict[str, float]:
        """The same figures of bicubic interpolation of the latents."""
        return self._mean([self._figures(case, _bicubic(case)) for case in self.cases])

    @torch.no_grad()
    def samples(self, network: nn.Module) -> Image.Image:
        """A sheet of decoded pictures."""
        columns = ("small latent", "bicubic on the latent", "network", "large latent")
        rows = []
        for case in self.cases[:: max(1, len(self.cases) // _SAMPLES)][:_SAMPLES]:
            latents = (case.small, _bicubic(case), self._predict(network, case), case.large)
            pictures = [self._decode(latent) for latent in latents]
            side = pictures[-1].shape[-2:]
            pictures[0] = F.interpolate(pictures[0], size=side, mode="nearest")
            rows.append(sheets.Row(case.title, [sheets.as_image(one) for one in pictures]))
        return sheets.contact_sheet(columns, rows)

    def _predict(self, network: nn.Module, case: _Case) -> Tensor:
        """A raw latent, by the network in eval mode."""
        was_training = network.training
        network.eval()
        small = RAW.to(self.scale, case.small.to(self.device))
        predicted = network(small, case.large.shape[-2:])
        network.train(was_training)
        return self.scale.to(RAW, predicted.float()).cpu()

    def _figures(self, case: _Case, predicted: Tensor) -> dict[str, float]:
        one, other = (RAW.to(self.space.unet, latent) for latent in (predicted, case.large))
        figures = {"l1": metrics.l1(one, other), "mse": metrics.mse(one, other)}
        if self.vae is not None:
            figures["psnr"] = metrics.psnr(self._decode(predicted), self._target(case))
        return figures

    def _target(self, case: _Case) -> Tensor:
        return self._decode(case.large)

    def _decode(self, raw: Tensor) -> Tensor:
        """(1, 3, H, W) in 0..1, on the CPU."""
        if self.vae is not None:
            return to_images(self.vae.decode(raw.to(self.device))).cpu()
        assert self._preview is not None
        picture: Tensor = self._preview(RAW.to(self.space.unet, raw))
        return picture.float()

    @staticmethod
    def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
        return {key: sum(one[key] for one in figures) / len(figures) for key in figures[0]}


def _bicubic(case: _Case) -> Tensor:
    return F.interpolate(case.small, size=case.large.shape[-2:], mode="bicubic", antialias=True)


def _cases(reader: ShardReader, pairs: int, factor: float | None) -> list[_Case]:
    usable = [
        index
        for index in range(len(reader))
        if factor is None or abs(float(reader.sizes(index).factor) - factor) < 1e-6
    ]
    if not usable:
        raise TrainingError(f"the validation pairs have no factor of {factor:g}")
    cases = []
    for number in range(min(pairs, len(usable))):
        index = usable[number * len(usable) // min(pairs, len(usable))]
        height, width = reader.sizes(index).small
        side = grid_side(min(height, width, _SIDE), reader.sizes(index).factor)
        grid = reader.grid(index)
        top, left = ((length - side) // 2 // grid * grid for length in (height, width))
        small, large = reader.crop(index, top, left, side)
        cases.append(_Case(small[None], large[None], reader.source(index).picture))
    return cases


def describe(figures: dict[str, float], space: LatentSpace) -> str:
    """Figures in a line."""
    words = [f"latent L1 {figures['l1']:.4f}, MSE {figures['mse']:.4f}"]
    if "psnr" in figures:
        words.append(f"decoded {figures['psnr']:.2f} dB")
    if figures.get("idle"):
        words.append(f"{figures['idle']:.0%} of the channels idle")
    return ", ".join(words)
