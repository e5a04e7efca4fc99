"""Random initial weights of the project's networks, as the published trainings began.

What nothing here names keeps torch's own (Kaiming uniform with a of sqrt 5), as there.
"""

from __future__ import annotations

from torch import nn

from ..architectures import Network
from ..architectures.compact import Compact
from ..architectures.halfway import Halfway
from ..architectures.layers.restoration import RestorationNetwork
from ..architectures.layers.swin import WindowAttention
from ..architectures.ttl import ResidualBlock, Ttl

_STD = 0.02
"""Of linear layers and position biases in Swin (Liu et al., ICCV 2021) and all after it."""


def initialise(network: Network) -> None:
    """Sets the weights that torch's own constructors leave otherwise; draws from torch's RNG."""
    if isinstance(network, RestorationNetwork):
        _transformer(network)
    elif isinstance(network, Ttl):
        _quiet_blocks(network)
    elif isinstance(network, Compact):
        # It begins as bilinear interpolation, which is the best that it knows then.
        zero(network.conv_last)
    elif isinstance(network, Halfway):
        plain_resampling(network)


def _transformer(network: RestorationNetwork) -> None:
    """SwinIR, DAT, CRAFT and DRCT: normal linear layers without bias, plain norms.

    1x1 convolutions that run as linear layers here are convolutions there, and begin as such.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=_STD)


def _quiet_blocks(network: Ttl) -> None:
    """Each residual block adds nothing at first."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            last = module.out_layers[3]
            assert isinstance(last, nn.Conv2d)
            zero(last)


def plain_resampling(network: Halfway) -> None:
    """Lets what it knows of places do nothing at first."""
    zero(network.phase)
    if network.neighbours:
        zero(network.down)
        zero(network.across)


def zero(layer: nn.Conv2d) -> None:
    """Lets a layer give nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
