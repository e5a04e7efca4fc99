"""The latent spaces: which VAE's latents, in which scale.

A VAE gives latents in its own scale, here called raw. Diffusion models see them scaled, and
for some shifted, to about unit variance: UNet scale, which is also what every WebUI hands over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the catalogue is read at every launch of a WebUI, which cannot wait for torch
    from torch import Tensor


@dataclass(frozen=True)
class LatentScale:
    """How latents are scaled: scaled = (raw - shift) * factor."""

    factor: float
    shift: float = 0.0

    def to(self, other: LatentScale, latent: Tensor) -> Tensor:
        """A latent in this scale, in the `other` one."""
        if other == self:
            return latent
        return latent * (other.factor / self.factor) + (self.shift - other.shift) * other.factor


RAW = LatentScale(1.0)


@dataclass(frozen=True)
class LatentSpace:
    """The latents of one family of models; `unet` is the scale that its UNet works in."""

    id: str
    label: str
    channels: int
    unet: LatentScale


SD15 = LatentSpace("sd15", "SD1.5", 4, LatentScale(0.18215))
SDXL = LatentSpace("sdxl", "SDXL", 4, LatentScale(0.13025))
SD3 = LatentSpace("sd3", "SD3", 16, LatentScale(1.5305, 0.0609))
FLUX = LatentSpace("flux", "FLUX", 16, LatentScale(0.3611, 0.1159))

SPACES = {space.id: space for space in (SD15, SDXL, SD3, FLUX)}
"""By id. SD2 shares SD1.5's space."""


def find_space(channels: int, factor: float, shift: float = 0.0) -> LatentSpace | None:
    """The space with these channels and this UNet scale, or None."""
    for space in SPACES.values():
        near = abs(space.unet.factor - factor) < 1e-3 and abs(space.unet.shift - shift) < 1e-3
        if space.channels == channels and near:
            return space
    return None
