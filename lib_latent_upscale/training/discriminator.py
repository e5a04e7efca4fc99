"""The discriminator of an adversarial loss, and its training.

Goodfellow et al., Generative adversarial nets, 2014. The published upscalers' is an
EfficientNetV2-b0 of timm (Tan and Le, EfficientNetV2: smaller models and faster training, 2021)
with as many input channels as the latents have; `Patches` is a small one of our own, which judges
place by place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from .errors import TrainingError

NAME = "tf_efficientnetv2_b0"
PATCHES = "patches"
FEWEST = 4
"""Values that the network's batch normalisation is to have of every channel."""
KINDS = ("vanilla", "least_squares", "hinge", "relativistic")


def build(channels: int, name: str = NAME) -> nn.Module:
    """A classifier of timm, untrained: latents (N, channels, H, W) -> scores (N, 1); or `Patches`,
    with scores (N, 1, H/2, W/2).

    Raises `TrainingError` where timm is missing or has none of this name.
    """
    if name == PATCHES:
        return Patches(channels)
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        # A torchvision that is not of this torch's version is a RuntimeError.
        raise TrainingError(
            f"an adversarial loss needs the packages timm and torchvision ({error}); "
            'install the extension with "pip install .[train]", or '
            f"--set discriminator={PATCHES}"
        ) from error
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, in_chans=channels, num_classes=1
        )
    except RuntimeError as error:
        raise TrainingError(f"timm makes no discriminator {name!r}: {error}") from error
    return model


class Patches(nn.Sequential):
    """Latents (N, channels, H, W) -> a score for each 2x2 pixels, by the 16x16 around: (N, 1, H/2,
    W/2).

    Isola et al., Image-to-image translation with conditional adversarial networks, 2017; with the
    spectral normalisation of Miyato et al., 2018, in place of one over the batch.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        def layer(given: int, wanted: int, side: int, stride: int) -> nn.Module:
            convolution = nn.Conv2d(given, wanted, side, stride, padding=1)
            return nn.utils.parametrizations.spectral_norm(convolution)

        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            layer(width, width, 3, 1),
            nn.LeakyReLU(0.2),
            layer(width, 2 * width, 4, 2),
            nn.LeakyReLU(0.2),
            layer(2 * width, 2 * width, 3, 1),
            nn.LeakyReLU(0.2),
            layer(2 * width, 1, 3, 1),
        )


class Adversary:
    """A discriminator in training: the generator's loss, and the discriminator's own steps.

    network: latents (N, C, H, W) -> scores (N, 1) or (N, 1, h, w), high for those of real
        pictures.
    optimizer: over the network's parameters.
    kind: "vanilla" (cross-entropy, the generator's being that of the wrong label, so that its
        gradient does not fade), "least_squares" (Mao et al., 2017), "hinge" (Lim and Ye, 2017) or
        "relativistic" (the average one of Jolicoeur-Martineau, 2018).
    precision: bfloat16 by autocast, or float32. The losses themselves are float32 always.
    average: called before each step with the network, to average its gradients over the processes
        of a run. Batch statistics stay each process's own.

    Raises `TrainingError` for an unknown kind and, when it is asked, for batches that are too
    small for the network's normalisation.

    A step of the discriminator is `backward` for every part of the batch, then `step`; or `update`
    for a batch in one part.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        kind: str = "vanilla",
        precision: torch.dtype = torch.float32,
        average: Callable[[nn.Module], None] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise TrainingError(f"an adversarial loss is one of {', '.join(KINDS)}, not {kind!r}")
        self.network, self.optimizer, self.kind = network.train(), optimizer, kind
        self.precision, self.average = precision, average
        self._stride = _batch_stride(network)

    def generator_loss(self, predicted: Tensor, target: Tensor | None = None) -> Tensor:
        """How clearly predictions (N, C, H, W) are told from real latents: a scalar.

        target: the real ones, which only "relativistic" asks for. Gradients go to `predicted`,
        none to the discriminator.
        """
        trained = [one for one in self.network.parameters() if one.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            fake = self._scores(predicted)
            if self.kind == "vanilla":
                return _cross_entropy(fake, 1)
            if self.kind == "least_squares":
                return 0.5 * (fake - 1).square().mean()
            if self.kind == "hinge":
                return -fake.mean()
            if target is None:
                raise ValueError("a relativistic loss compares with real latents, none are given")
            with torch.no_grad():
                real = self._scores(target)
            return 0.5 * (
                _cross_entropy(real - fake.mean(), 0) + _cross_entropy(fake - real.mean(), 1)
            )
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def discriminator_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """How badly it tells predictions from real latents, each (N, C, H, W): a scalar.

        Gradients go to the discriminator, none to `predicted`.
        """
        real, fake = self._scores(target.detach()), self._scores(predicted.detach())
        if self.kind == "vanilla":
            return 0.5 * (_cross_entropy(real, 1) + _cross_entropy(fake, 0))
        if self.kind == "least_squares":
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())
        if self.kind == "hinge":
            return 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
        return 0.5 * (_cross_entropy(real - fake.mean(), 1) + _cross_entropy(fake - real.mean(), 0))

    def backward(self, predicted: Tensor, target: Tensor, share: float = 1.0) -> Tensor:
        """Adds a part of a batch to the gradients; returns its loss, without gradient.

        share: how much of the batch it is.
        """
        loss = self.discriminator_loss(predicted, target)
        (loss * share).backward()
        return loss.detach()

    def step(self) -> None:
        """The optimizer's step with the gradients that `backward` added up."""
        if self.average is not None:
            self.average(self.network)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, predicted: Tensor, target: Tensor) -> Tensor:
        """One step by a whole batch; returns its loss before the step, without gradient."""
        loss = self.backward(predicted, target)
        self.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _scores(self, latents: Tensor) -> Tensor:
        self._check_batch(latents)
        autocast = torch.autocast(
            latents.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16
        )
        with autocast:
            scores: Tensor = self.network(latents)
        return scores if scores.dtype == torch.float64 else scores.float()

    def _check_batch(self, latents: Tensor) -> None:
        """Normalised over two or three values, gradients grow by the layer: to 1e10, measured."""
        if self._stride is None:
            return
        height, width = (math.ceil(side / self._stride) for side in latents.shape[-2:])
        if len(latents) * height * width < FEWEST:
            raise TrainingError(
                f"the discriminator normalises over the batch, and of {len(latents)} latents of "
                f"{latents.shape[-2]}x{latents.shape[-1]} its last layers have fewer than {FEWEST} "
                f"values: choose a batch of {FEWEST} or more, or a crop that makes the large "
                f"latents larger than {self._stride}"
            )


def _batch_stride(network: nn.Module) -> int | None:
    """Latent pixels per value, along each side, of the last layers of a network of timm; None for
    others, and for those that do not normalise over the batch."""
    stages = getattr(network, "feature_info", None)
    normalises = any(isinstance(one, nn.BatchNorm2d) for one in network.modules())
    return int(stages[-1]["reduction"]) if stages and normalises else None


def _cross_entropy(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))
