"""What raw latents of real pictures are usually like, channel by channel.

Measured with TAESD's four encoders on 188 crops of 256 pixels, four latent pixels of their borders
cut off, up to 16 each from 13 packages of Debian 12: flare-game, gnome-backgrounds, hedgewars-data,
krita-data, mate-backgrounds, mypaint-data-extras, openclipart-png, plasma-workspace-wallpapers,
supertuxkart-data, sway-backgrounds, tuxpaint-stamps-default, warzone2100-data, wesnoth-1.16-data.
The real VAEs' latents have other noise, but what TAESD learnt is to match them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Moments:
    """Each channel's mean and standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transformed(self, factor: float, offset: float) -> Moments:
        """Those of the same latents times a factor, plus an offset."""
        return Moments(
            tuple(mean * factor + offset for mean in self.mean),
            tuple(std * abs(factor) for std in self.std),
        )


def distance(seen: Moments, usual: Moments) -> float:
    """How far moments are from usual ones: a root mean square over the channels.

    A mean counts in usual standard deviations, a standard deviation by the logarithm of its ratio
    to the usual one.
    """
    squares = [
        ((mean - usual_mean) / usual_std) ** 2 + math.log(max(std, 1e-9) / usual_std) ** 2
        for mean, std, usual_mean, usual_std in zip(seen.mean, seen.std, usual.mean, usual.std)
    ]
    return math.sqrt(sum(squares) / len(squares))


FAR = 0.45
"""A distance that warns if a mistake (`inspecting.mistakes`) is nearer. Of the packages, each alone
and wrong in one of eleven ways, 568 of 572 are warned of; of those that are right, 5 of 52:
mypaint-data-extras, which is paper and nothing else, in all spaces, sway-backgrounds in one."""

VERY_FAR = 1.3
"""A distance that warns in any case; the most of any package that is right was 1.23."""

LEAST_AGREEMENT = 0.25
"""The least usual correlation of small latents with averaged-down large ones. 29 crops of five of
the packages had 0.61 on the average, 0.14 with the small ones mirrored, -0.01 with those of another
picture."""

# fmt: off
RIGHT = {
    "sd15": Moments(
        (2.229, -1.461, 1.813, 0.688),
        (4.424, 5.678, 5.028, 4.333)),
    "sdxl": Moments(
        (-1.183, 2.098, 0.951, 1.120),
        (7.772, 8.019, 9.191, 5.999)),
    "sd3": Moments(
        (0.460, -0.244, -0.466, -0.131, 0.697, -0.212, -0.511, -1.015,
         0.108, 0.627, 0.385, 0.293, 0.419, -0.518, -0.049, 0.313),
        (0.563, 0.403, 0.684, 0.731, 0.573, 0.822, 0.602, 0.801,
         0.632, 0.493, 0.461, 0.669, 0.461, 0.747, 0.476, 0.584)),
    "flux": Moments(
        (0.526, -0.574, -0.413, 0.153, -0.099, 1.227, -1.288, 0.647,
         0.397, -0.167, 0.238, 0.308, -0.792, -0.412, -0.824, 0.339),
        (3.162, 3.797, 3.772, 1.813, 1.977, 2.680, 3.431, 2.721,
         2.902, 4.514, 2.530, 2.351, 2.748, 4.095, 3.197, 2.684)),
}
"""Of pictures in -1..1, by the space's id."""

FROM_0_TO_1 = {
    "sd15": Moments(
        (5.980, 2.363, 1.120, -1.859),
        (3.435, 4.055, 3.876, 3.169)),
    "sdxl": Moments(
        (5.234, 2.240, 1.422, -2.179),
        (5.267, 5.710, 6.984, 4.816)),
    "sd3": Moments(
        (0.575, -0.168, -0.247, 0.534, 0.853, 0.238, -0.109, -0.516,
         -0.407, 0.500, 0.900, 0.417, 0.831, -1.112, -0.563, -0.316),
        (0.367, 0.308, 0.522, 0.536, 0.448, 0.597, 0.441, 0.547,
         0.442, 0.404, 0.310, 0.511, 0.309, 0.555, 0.325, 0.399)),
    "flux": Moments(
        (1.125, 3.875, -0.941, 0.180, 0.398, 2.197, 1.811, -1.544,
         0.621, 2.143, 1.493, 2.040, 1.903, -4.234, -3.362, -2.046),
        (2.365, 2.921, 3.106, 1.484, 1.551, 2.450, 2.866, 2.082,
         2.176, 3.156, 1.979, 1.946, 2.172, 3.252, 2.339, 1.940)),
}
"""Of the same pictures given in 0..1 where -1..1 is meant: as if they were pale."""
