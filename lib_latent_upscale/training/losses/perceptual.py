"""LPIPS, the distance of pictures in a trained network's features.

Zhang, Isola, Efros, Shechtman and Wang, The unreasonable effectiveness of deep features as a
perceptual metric, 2018. Network and calibration are those of the package lpips.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...weights.errors import WeightsError
from ...weights.reading import read
from ..errors import TrainingError
from .base import Loss

TRUNKS = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""The networks, and the files that torchvision publishes their weights in."""


class LPIPS(Loss):
    """LPIPS 0.1 of pictures (N, 3, H, W) in -1..1, a mean over N.

    weights: the file of the network's ImageNet weights, as torchvision publishes it (see
        `TRUNKS`; https://download.pytorch.org/models/NAME) or the same as .safetensors. Nothing
        is downloaded here.
    net: "vgg", which the paper's authors advise for training, "alex" or "squeeze".
    """

    on = ("picture",)

    def __init__(self, weights: Path | str | None = None, net: str = "vgg") -> None:
        super().__init__()
        if net not in TRUNKS:
            raise ValueError(f"net is one of {', '.join(TRUNKS)}, not {net!r}")
        if weights is None:
            raise TrainingError(
                f"LPIPS needs the weights of its network: download "
                f"https://download.pytorch.org/models/{TRUNKS[net]} and name the file as the "
                "loss's option 'weights'"
            )
        self.network = _network(net)
        _fill(self.network.net, Path(weights), net)
        self.network.eval().requires_grad_(False)

    def measure(self, predicted: Tensor, target: Tensor) -> Tensor:
        if predicted.shape[1] != 3:
            raise ValueError(f"LPIPS compares pictures of 3 channels, not {predicted.shape[1]}")
        distance: Tensor = self.network(predicted, target)
        return distance.mean()


def _network(net: str) -> Any:
    try:
        import lpips
    except (ImportError, RuntimeError) as error:
        # A torchvision that is not of this torch's version is a RuntimeError.
        raise TrainingError(
            f"LPIPS needs the packages lpips and torchvision ({error}); "
            'install the extension with "pip install .[train]"'
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in words that it deprecates
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def _fill(trunk: nn.Module, path: Path, net: str) -> None:
    """Torchvision's ``features.7.weight`` is ``slice2.7.weight`` in lpips."""
    try:
        weights = read(path).tensors
        own = {key: weights[re.sub(r"^slice\d+", "features", key)] for key in trunk.state_dict()}
        trunk.load_state_dict(own)
    except (WeightsError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise TrainingError(
            f"{path} does not hold the weights of LPIPS's {net!r} ({why}); they are "
            f"https://download.pytorch.org/models/{TRUNKS[net]}"
        ) from error
