"""A small classifier of latents, for its features: what VGG is to losses on pictures.

`classifier` is the command that trains one; `losses.contextual` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from ..spaces import RAW, SPACES, LatentSpace
from ..weights.errors import WeightsError
from ..weights.reading import read
from . import whole
from .errors import TrainingError

FORMAT = "latent-classifier-1"
STRIDES = (1, 2, 4)
"""Latent pixels per feature along each side, of every stage."""
_GROUPS = 8


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), (N, W, h, w) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, W, h, w) -> the same shape."""
        residual: Tensor = x + self.body(x)
        return residual


class LatentClassifier(nn.Module):
    """Raw latents (N, C, h, w) of a space -> scores (N, number of labels).

    labels: the classes' names, two or more.
    width: features of the first stage, a multiple of 8; each later stage has twice as many.
    Inside, latents are brought to UNet scale, in which every space has about unit variance.
    Normalised by groups, not by batches: so its features are the same in training and in use.
    """

    def __init__(self, space: LatentSpace, labels: Sequence[str], width: int = 48) -> None:
        super().__init__()
        if len(labels) < 2 or width < _GROUPS or width % _GROUPS:
            raise ValueError(
                f"two labels or more and a width that is a multiple of {_GROUPS} are wanted, "
                f"not {len(labels)} and {width}"
            )
        self.space, self.labels, self.width = space, tuple(labels), width
        widths = [width << index for index in range(len(STRIDES))]
        stages: list[nn.Module] = []
        for index, wide in enumerate(widths):
            entry = (
                nn.Conv2d(widths[index - 1], wide, 3, stride=2, padding=1)
                if index
                else nn.Conv2d(space.channels, wide, 3, padding=1)
            )
            stages.append(nn.Sequential(entry, ResidualBlock(wide), ResidualBlock(wide)))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(
            nn.GroupNorm(_GROUPS, widths[-1]),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], len(labels)),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Raw latents (N, C, h, w) -> scores before the softmax, (N, labels)."""
        scores: Tensor = self.head(self.features(latents)[-1])
        return scores

    def features(self, latents: Tensor) -> list[Tensor]:
        """Raw latents (N, C, h, w) -> the stages' outputs.

        Stage s gives (N, width * 2^s, h / STRIDES[s], w / STRIDES[s]), sides rounded up.
        Raises `ValueError` for latents of another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.space.channels:
            raise ValueError(
                f"a classifier of {self.space.label} latents wants (N, {self.space.channels}, "
                f"h, w), not {tuple(latents.shape)}"
            )
        found = []
        x = RAW.to(self.space.unet, latents)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def save(model: LatentClassifier, path: Path, told: Mapping[str, str]) -> None:
    """Writes a classifier as .safetensors, whole or not at all.

    told: what else its metadata shall say.
    """
    metadata = {
        **told,
        "format": FORMAT,
        "space": model.space.id,
        "labels": json.dumps(model.labels),
        "width": str(model.width),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with whole.replacing(path) as part:
        save_file(weights, part, metadata)


def load(path: Path | str) -> LatentClassifier:
    """The classifier in a file, frozen, in eval mode, on the CPU.

    Raises `TrainingError` for what is none.
    """
    try:
        file = read(Path(path))
        if file.metadata.get("format") != FORMAT:
            raise ValueError("its metadata do not say that it is one")
        labels = json.loads(file.metadata["labels"])
        space = SPACES[file.metadata["space"]]
        model = LatentClassifier(space, labels, int(file.metadata["width"]))
        model.load_state_dict(dict(file.tensors))
    except (WeightsError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise TrainingError(
            f"{path} is no classifier of latents ({why}); "
            "python -m lib_latent_upscale.training classifier makes one"
        ) from error
    return model.eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.GroupNorm(_GROUPS, inputs),
        nn.SiLU(),
        nn.Conv2d(inputs, outputs, 3, padding=1),
    ]
