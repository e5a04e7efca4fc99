"""The VAE of a latent space, from a file: pictures to raw latents and back.

Two kinds. A real VAE is diffusers' AutoencoderKL, from one file as people have it beside their
checkpoints (or a whole checkpoint), or from a folder in diffusers' layout; it needs diffusers
(pip install diffusers) and asks the web for nothing. A tiny one is a pair of TAESD files (see
`codecs`), or a folder of diffusers' AutoencoderTiny: much faster, and close to the real one.

Pictures are (N, 3, H, W), RGB in -1..1, H and W multiples of 8. Latents are (N, C, H/8, W/8) in the
VAE's raw scale: no scaling factor, no shift.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from ..spaces import RAW, LatentSpace, find_space
from . import codecs, vae_files
from .errors import TrainingError

Precision = Literal["fp32", "bf16"]


class Vae(ABC):
    """A frozen VAE of one latent space."""

    def __init__(self, space: LatentSpace, name: str, precision: Precision = "fp32") -> None:
        self.space, self.name, self.precision = space, name, precision
        self.device = torch.device("cpu")

    def encode(
        self, pictures: Tensor, generator: Generator | Sequence[Generator] | None = None
    ) -> Tensor:
        """Pictures (N, 3, H, W) in -1..1 -> raw latents (N, C, H/8, W/8), float32.

        Computed in inference mode. Where the VAE gives a distribution, this is a sample of it.
        generator: what the sample is drawn with, torch's own if None; as many as there are
        pictures make a picture's latent the same whatever it is encoded together with.
        """
        if pictures.shape[-2] % codecs.FACTOR or pictures.shape[-1] % codecs.FACTOR:
            raise ValueError(f"picture sides must be multiples of 8, not {tuple(pictures.shape)}")
        with torch.inference_mode():
            # As convolutions on a CPU are quickest with, in bfloat16 above all.
            pictures = pictures.float().contiguous(memory_format=torch.channels_last)
            latents = self._encode(pictures, generator)
        return latents.clone()  # outside of inference mode: a tensor that gradients may use

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (N, C, h, w) -> pictures (N, 3, 8h, 8w), float32, in -1..1 but for overshoot.

        Differentiable. Not clamped, because a clamp has no gradient outside.
        """
        return self._decode(latents.float())

    @property
    def encodes(self) -> bool:
        """Whether it has an encoder."""
        return True

    @property
    def decodes(self) -> bool:
        """Whether it has a decoder."""
        return True

    def to(self, device: torch.device | str) -> Vae:
        """Moves the weights; returns itself."""
        self.device = torch.device(device)
        for module in self._modules():
            module.to(self.device)
        return self

    @abstractmethod
    def _modules(self) -> Sequence[nn.Module]: ...

    @abstractmethod
    def _encode(
        self, pictures: Tensor, generator: Generator | Sequence[Generator] | None
    ) -> Tensor: ...

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor: ...

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class TinyVae(Vae):
    """TAESD's encoder and decoder; either may be missing until it is asked for."""

    def __init__(
        self,
        space: LatentSpace,
        name: str,
        encoder: codecs.Encoder | None,
        decoder: codecs.Decoder | None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(space, name, precision)
        self.encoder, self.decoder = encoder, decoder

    @property
    def encodes(self) -> bool:
        return self.encoder is not None

    @property
    def decodes(self) -> bool:
        return self.decoder is not None

    def _modules(self) -> Sequence[nn.Module]:
        return [part for part in (self.encoder, self.decoder) if part is not None]

    def _encode(
        self, pictures: Tensor, generator: Generator | Sequence[Generator] | None
    ) -> Tensor:
        if self.encoder is None:
            raise TrainingError(f"{self.name} is a decoder; name the encoder's file to encode")
        layers = list(self.encoder)
        features = (pictures + 1) / 2
        with self._autocast(pictures.device):
            for layer in layers[:-1]:
                features = layer(features)
        # The last layer in float32, so that the latents are not rounded to bfloat16.
        return self.space.unet.to(RAW, layers[-1](features.float()))

    def _decode(self, latents: Tensor) -> Tensor:
        if self.decoder is None:
            raise TrainingError(f"{self.name} is an encoder; name the decoder's file too to decode")
        latents = RAW.to(self.space.unet, latents).contiguous(memory_format=torch.channels_last)
        with self._autocast(latents.device):
            pictures = nn.Sequential.forward(self.decoder, latents)
        return pictures.float() * 2 - 1


class DiffusersVae(Vae):
    """An AutoencoderKL or AutoencoderTiny of diffusers."""

    def __init__(
        self, space: LatentSpace, name: str, model: Any, precision: Precision = "fp32"
    ) -> None:
        super().__init__(space, name, precision)
        self.model = model.float().eval().requires_grad_(False)

    def _modules(self) -> Sequence[nn.Module]:
        return [self.model]

    def _encode(
        self, pictures: Tensor, generator: Generator | Sequence[Generator] | None
    ) -> Tensor:
        with self._autocast(pictures.device):
            encoded = self.model.encode(pictures)
        if hasattr(encoded, "latents"):  # AutoencoderTiny's: one latent, in UNet scale
            latents: Tensor = encoded.latents.float()
            return self.space.unet.to(RAW, latents)
        # Drawn in float32 whatever the encoder computed in.
        distribution = type(encoded.latent_dist)(encoded.latent_dist.parameters.float())
        several = list(generator) if isinstance(generator, Sequence) else generator
        sample: Tensor = distribution.sample(several)
        return sample

    def _decode(self, latents: Tensor) -> Tensor:
        tiny = type(self.model).__name__ == "AutoencoderTiny"
        with self._autocast(latents.device):
            pictures = self.model.decode(RAW.to(self.space.unet, latents) if tiny else latents)
        decoded: Tensor = pictures.sample.float()
        return decoded


def open_vae(
    path: Path | str,
    space: LatentSpace,
    decoder: Path | str | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Vae:
    """The VAE of a latent space from its file or folder, frozen.

    path: a VAE's or a whole checkpoint's .safetensors, .pt, .pth or .ckpt file, a folder in
        diffusers' layout, or TAESD's encoder (or, to decode only, its decoder).
    decoder: TAESD's decoder, where `path` is its encoder.
    precision: "bf16" computes by autocast to bfloat16; latents and pictures are float32 anyway.
    Raises `TrainingError` for what is no VAE, or is one of another space.
    """
    path = Path(path)
    if path.is_dir():
        model = vae_files.load_folder(path)
    else:
        weights = vae_files.read(path)
        if vae_files.is_tiny(weights):
            return _tiny(path, weights, space, decoder, precision).to(device)
        model = vae_files.load_single(path, weights)
    _check_channels(path, model.config.latent_channels, space)
    _check_scale(path, model.config, space)
    return DiffusersVae(space, path.name, model, precision).to(device)


def to_images(pictures: Tensor) -> Tensor:
    """Pictures in -1..1 of any shape -> the same in 0..1, clamped."""
    return (pictures.float() + 1).div(2).clamp(0, 1)


def _tiny(
    path: Path,
    weights: Mapping[str, Tensor],
    space: LatentSpace,
    decoder: Path | str | None,
    precision: Precision,
) -> TinyVae:
    files = {path: weights}
    if decoder is not None:
        files[Path(decoder)] = vae_files.read(Path(decoder))
    encoding: codecs.Encoder | None = None
    decoding: codecs.Decoder | None = None
    for file, content in files.items():
        try:
            if vae_files.is_tiny_encoder(content):
                encoding = codecs.encoder_from_state_dict(content)
                channels = encoding.channels
            else:
                decoding = codecs.decoder_from_state_dict(content)
                channels = decoding.channels
        except (ValueError, RuntimeError) as error:
            raise TrainingError(f"{file} is no encoder or decoder of TAESD: {error}") from error
        _check_channels(file, channels, space)
    return TinyVae(space, path.name, encoding, decoding, precision)


def _check_channels(path: Path, channels: int, space: LatentSpace) -> None:
    if channels != space.channels:
        raise TrainingError(
            f"{path} is for latents of {channels} channels, but {space.label}'s have "
            f"{space.channels}; name a VAE of {space.label}, or another space"
        )


def _check_scale(path: Path, config: Any, space: LatentSpace) -> None:
    """A folder's configuration tells its scale; AutoencoderTiny's latents always have 1."""
    if not path.is_dir() or config.scaling_factor == 1:
        return
    told = find_space(
        config.latent_channels, config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    )
    if told not in (None, space):
        said = json.dumps({"scaling_factor": config.scaling_factor})
        raise TrainingError(f"{path} is a VAE of {told.label if told else ''} ({said}), "
            f"not of {space.label}; name another VAE or another space")  # fmt: skip
