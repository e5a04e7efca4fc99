"""What a network is trained to lessen: a weighted sum of losses, some of them from a later step on.

A loss is of the latents themselves, or of the pictures that a frozen VAE makes of them, as in
Ttl's NNLatentUpscale (https://github.com/Ttl/ComfyUi_NNLatentUpscale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..spaces import LatentSpace
from . import losses
from .errors import TrainingError
from .losses.base import Kind, Loss
from .losses.contextual import Contextual

if TYPE_CHECKING:
    from .discriminator import Adversary
    from .vae import Vae


@dataclass(frozen=True)
class Term:
    """One loss of a sum.

    loss: its name, see `losses.LOSSES`.
    start: the first step that it counts at.
    on: "latent", or "picture" for the decoded latents.
    options: its constructor's arguments.
    Raises `TrainingError` where these make no sense.
    """

    loss: str
    weight: float = 1.0
    start: int = 0
    on: Kind = "latent"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in losses.LOSSES:
            raise TrainingError(
                f"no loss is called {self.loss!r}; there are {', '.join(losses.LOSSES)}"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise TrainingError(f"{self.loss}: a weight is a number above 0, not {self.weight}")
        if self.start < 0:
            raise TrainingError(f"{self.loss}: a start step is 0 or more, not {self.start}")
        if self.on not in get_args(Kind):
            raise TrainingError(f"{self.loss}: on is latent or picture, not {self.on!r}")
        if self.on not in losses.LOSSES[self.loss].on:
            raise TrainingError(
                f"{self.loss} compares {' and '.join(losses.LOSSES[self.loss].on)}s, not {self.on}s"
            )

    @property
    def name(self) -> str:
        """The loss's name, after ``picture_`` where it is of the decoded pictures."""
        return self.loss if self.on == "latent" else f"picture_{self.loss}"


class Criterion(nn.Module):
    """The weighted sum of the terms that have started.

    vae: decodes for the terms on pictures. Its weights are frozen, the gradient goes through.
    discriminator: what an adversarial term asks.
    to_raw: brings the latents that are compared to the VAE's raw scale; they are raw if None.
    space: whose latents they are, if that is known: a contextual loss's classifier must be of
        the same.
    decode_batch: latents decoded at a time. Each group's inside is computed again for its
        gradient instead of being kept: so a step needs memory for one group, and one more
        decoding. All at a time, and kept, if None.
    picture_side: the side, in latent pixels, of the square of each latent that is decoded for the
        terms on pictures, drawn anew each time from torch's random numbers: a part of the time,
        and of the memory. The whole latent if None, or where it is no larger.
    picture_squares: how many such squares of each latent. Beside each other they are one picture
        to the losses.
    Raises `TrainingError` for terms that cannot be computed with these.

    A module, so that `to` moves what the losses hold; there is nothing in it to be trained or
    saved.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        vae: Vae | None = None,
        discriminator: Adversary | None = None,
        to_raw: Callable[[Tensor], Tensor] | None = None,
        space: LatentSpace | None = None,
        decode_batch: int | None = None,
        picture_side: int | None = None,
        picture_squares: int = 1,
    ) -> None:
        super().__init__()
        self.terms = tuple(terms)
        if all(term.start for term in self.terms):
            raise TrainingError("no loss counts at step 0: give one of them no start step")
        if vae is None and any(term.on == "picture" for term in self.terms):
            raise TrainingError("a loss on pictures needs the VAE's decoder; name its file")
        if decode_batch is not None and decode_batch < 1:
            raise TrainingError(f"decode_batch is 1 or more, not {decode_batch}")
        if picture_side is not None and picture_side < 1:
            raise TrainingError(f"picture_side is 1 or more, not {picture_side}")
        if picture_squares < 1:
            raise TrainingError(f"picture_squares is 1 or more, not {picture_squares}")
        self.vae, self.to_raw, self.decode_batch = vae, to_raw, decode_batch
        self.picture_side, self.picture_squares = picture_side, picture_squares
        self.discriminator = discriminator
        self.losses = nn.ModuleList(self._build(term) for term in self.terms)
        self.names = _distinct([term.name for term in self.terms])
        for loss in self.losses:
            if isinstance(loss, Contextual) and space not in (None, loss.features.space):
                raise TrainingError(
                    f"the contextual loss's classifier is of {loss.features.space.label} latents, "
                    f"and these are {space.label if space else ''}'s; train one on their shards"
                )

    def forward(
        self, predicted: Tensor, target: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents (N, C, H, W), twice -> the sum, and each started term's own value.

        The sum is a scalar with a gradient to `predicted`; the values are without weight and
        without gradient, by their names (a loss's second term is NAME_2).
        """
        pictures: tuple[Tensor, Tensor] | None = None
        total = predicted.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}
        for term, name, loss in zip(self.terms, self.names, self.losses):
            if step < term.start:
                continue
            if term.on == "picture":
                pictures = pictures or self._pictures(predicted, target)
                value = loss(*pictures)
            else:
                value = loss(predicted, target)
            total = total + term.weight * value
            parts[name] = value.detach()
        return total, parts

    def counts(self, loss: str, step: int) -> bool:
        """Whether a term of this loss has started at a step."""
        return any(term.loss == loss and step >= term.start for term in self.terms)

    def _build(self, term: Term) -> Loss:
        options = dict(term.options)
        if term.loss == "adversarial":
            if self.discriminator is None:
                raise TrainingError("an adversarial loss needs a discriminator, and there is none")
            options["adversary"] = self.discriminator
        if term.loss == "contextual":
            options.setdefault("to_raw", self.to_raw)
        return losses.build(term.loss, **options)

    def _pictures(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.picture_side is None:
            return self._decoded(predicted, target)
        squares = same_squares(predicted, target, self.picture_side, self.picture_squares)
        found, wanted = self._decoded(*squares)
        return beside_each_other(found, len(predicted)), beside_each_other(wanted, len(predicted))

    def _decoded(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            groups = target.split(self.decode_batch or len(target))
            wanted = torch.cat([self._decode(group) for group in groups])
        if self.decode_batch is None:
            return self._decode(predicted), wanted
        groups = predicted.split(self.decode_batch)
        found = [checkpoint(self._decode, group, use_reentrant=False) for group in groups]
        return torch.cat(found), wanted

    def _decode(self, latents: Tensor) -> Tensor:
        assert self.vae is not None
        latents = latents if latents.dtype == torch.float64 else latents.float()
        return self.vae.decode(self.to_raw(latents) if self.to_raw else latents)


def same_squares(one: Tensor, other: Tensor, side: int, count: int = 1) -> tuple[Tensor, Tensor]:
    """From each of N latents (N, C, H, W) `count` squares of `side`, at random places, the same in
    both: (N * count, C, side, side).

    A side longer than the latent's is cut to that.
    """
    height, width = one.shape[-2:]
    high, wide = min(side, height), min(side, width)
    tops = _starts(height, high, len(one) * count)
    lefts = _starts(width, wide, len(one) * count)

    def cut(latents: Tensor) -> Tensor:
        squares = [
            latents[index // count, :, top : top + high, left : left + wide]
            for index, (top, left) in enumerate(zip(tops, lefts))
        ]
        return torch.stack(squares)

    return cut(one), cut(other)


def beside_each_other(squares: Tensor, rows: int) -> Tensor:
    """(rows * count, C, H, W) as (rows, C, H, count * W)."""
    return squares.unflatten(0, (rows, -1)).permute(0, 2, 3, 1, 4).flatten(3)


def _starts(length: int, part: int, count: int) -> list[int]:
    """Where `count` random parts of a side begin.

    Drawn from up to half a part beyond both ends and brought back in. Were all places as likely,
    only one of them would have the first pixel in it and `part` of them each pixel far inside; and
    a network has a picture's borders to learn, too, where convolutions see zeros.
    """
    beyond = part // 2
    starts = torch.randint(length - part + 1 + 2 * beyond, (count,)) - beyond
    return starts.clamp(0, length - part).tolist()


def _distinct(names: Sequence[str]) -> list[str]:
    """The second of a name becomes NAME_2, and so on."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return found
