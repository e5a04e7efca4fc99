"""Networks that spandrel builds: for those who want to try again what others tried.

They are trained and evaluated here, but what the extension loads are the project's own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .errors import TrainingError

_CHANNELS = {
    "in_chans", "in_channels", "num_in_ch", "inp_channels", "in_nc", "in_ch", "input_channels",
    "out_chans", "out_channels", "num_out_ch", "out_nc", "out_ch", "output_channels",
}  # fmt: skip
_SCALES = {"upscale", "up_scale", "scale", "upscaling", "upscale_factor", "upsampling", "sf"}


class Foreign(nn.Module):
    """A network of another project as one of ours: latents in, `scale` times larger ones out."""

    def __init__(self, architecture: str, network: nn.Module, channels: int, scale: int) -> None:
        super().__init__()
        self.architecture, self.network = architecture, network
        self.channels, self.scale = channels, scale

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = self.output_size(*x.shape[-2:])
        result: Tensor = self.network(x)
        if result.shape[1] != self.channels or result.shape[-2] < height:
            raise TrainingError(
                f"{self.architecture} makes {tuple(result.shape)} of {tuple(x.shape)}, no latent "
                f"{self.scale} times larger: choose other parameters"
            )
        return result[..., :height, :width]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that this network makes of a latent of that size."""
        return height * self.scale, width * self.scale

    def to_state_dict(self) -> dict[str, Tensor]:
        """The weights under the keys of the network's own project."""
        return {key: value.detach() for key, value in self.network.state_dict().items()}


def build(name: str, parameters: Mapping[str, Any], channels: int, scale: int) -> Foreign:
    """spandrel's network of that name, e.g. "HAT", with random weights.

    parameters: those of its class; its channels and its factor are told by `channels` and `scale`
        unless they are among them.
    Raises `TrainingError` where spandrel is not installed, has no such network, or the network
    takes no such parameters.
    """
    network_class = _find(name)
    known = inspect.signature(network_class).parameters
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TrainingError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    told: dict[str, Any] = {key: channels for key in _CHANNELS & set(known)}
    told |= {key: scale for key in _SCALES & set(known)}
    told |= dict(parameters)
    try:
        network = network_class(**told)
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise TrainingError(f"{name} cannot be built with {told}: {error}") from error
    _set_output_channels(network, channels, scale)
    return Foreign(name.lower(), network, channels, scale)


def _find(name: str) -> Any:
    try:
        package = importlib.import_module("spandrel.architectures")
    except ImportError as error:
        raise TrainingError(
            f"no network {name!r} here; those of spandrel need it: pip install spandrel ({error})"
        ) from error
    there = {path.lower(): path for path in _names(package)}
    if name.lower() not in there:
        raise TrainingError(
            f"no network {name!r}: neither here nor in spandrel, which has "
            f"{', '.join(sorted(there.values()))}"
        )
    title = there[name.lower()]
    module = importlib.import_module(f"spandrel.architectures.{title}")
    return getattr(module, title)


def _names(package: Any) -> list[str]:
    import pkgutil

    found = [item.name for item in pkgutil.iter_modules(package.__path__) if item.ispkg]
    return [name for name in found if not name.startswith("_")]


def _set_output_channels(network: nn.Module, channels: int, scale: int) -> None:
    """Some give three channels whatever they take: their last convolution is made anew."""
    last_name, last = [
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    ][-1]
    if channels == 3 or last.out_channels not in (3, 3 * scale**2):
        return
    assert isinstance(last.padding, tuple)
    wanted = nn.Conv2d(
        last.in_channels,
        last.out_channels // 3 * channels,
        last.kernel_size,  # type: ignore[arg-type]
        last.stride,  # type: ignore[arg-type]
        last.padding,  # type: ignore[arg-type]
        bias=last.bias is not None,
    )
    parent, _, leaf = last_name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, wanted)
