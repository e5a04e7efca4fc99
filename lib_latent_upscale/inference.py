"""From a latent to a larger latent: scales, sizes and passes round a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import Network, StateDictError, from_state_dict
from .calls import Call, Interrupted, before_each_step
from .catalog import CATALOG, Entry
from .compiling import Compilation, as_they_were
from .memory import peak_bytes
from .resample import resample
from .spaces import LatentScale, LatentSpace
from .tiling import tiled
from .weights import files, reading
from .weights.describing import describe
from .weights.errors import WeightsError

__all__ = ["Interrupted", "LatentUpscaler", "NotFiniteError", "load"]

AFTER_PASSES = 0.5
"""How much antialiasing a network's result gets on the way down to the target: half of the full
is both nearer to the truth and sharper (docs/sizes.md)."""


class NotFiniteError(ArithmeticError):
    """A network in half precision gave NaN or infinite values for a latent that has none."""


class LatentUpscaler:
    """A network with what it takes to use it on latents in UNet scale.

    network: the network, in eval mode.
    space: the latent space of its latents.
    input_scale: the scale in which the network itself takes and gives them.
    name: what messages call it: the catalogue's id or the file's name.
    entry: the catalogue's entry, or None for a file that is in no catalogue.
    """

    def __init__(
        self,
        network: Network,
        space: LatentSpace,
        input_scale: LatentScale,
        name: str,
        entry: Entry | None = None,
    ) -> None:
        if network.channels != space.channels:
            raise WeightsError(
                f"{name} takes latents of {network.channels} channels; those of {space.label} "
                f"have {space.channels}"
            )
        self.network = network
        self.space = space
        self.input_scale = input_scale
        self.name = name
        self.entry = entry
        self.compilation: Compilation | None = None
        before_each_step(network)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> LatentUpscaler:
        """Moves the network, and casts it if `dtype` is given; returns self."""
        self.network.to(device=device, dtype=dtype)
        return self

    def copied(self, dtype: torch.dtype) -> LatentUpscaler:
        """One of its own with the weights in `dtype`, which share memory where they are the same.

        Moving either leaves the other where it is.
        """
        twin = self._twin(lambda weight: weight.to(dtype))
        twin.network.to(dtype=dtype)
        return twin

    def _twin(self, convert: Callable[[Tensor], Tensor]) -> LatentUpscaler:
        """A copy whose network's parameters are what `convert` makes of this one's."""
        weights = {
            id(one): nn.Parameter(convert(one.detach()), requires_grad=False)
            for one in self.network.parameters()
        }
        twin = copy.copy(self)
        twin.network = copy.deepcopy(self.network, weights)
        as_they_were(twin.network)
        twin.compilation = None
        return twin

    def working_bytes(self, shape: Sequence[int], size: tuple[int, int], dtype: torch.dtype) -> int:
        """The memory that tensors take at the most while a latent of that shape (N, C, H, W) is
        upscaled to `size` as a whole by a copy in `dtype`, beyond weights and latent: an
        estimate, computed in some tenths of a second without running the network."""
        twin = self._twin(lambda weight: weight.to("meta", dtype))
        twin.network.to("meta", dtype)
        x = torch.empty(*shape, dtype=dtype, device="meta")
        with torch.no_grad():
            return peak_bytes(twin.network, lambda: twin._passes(x, size, None))

    def compile(self, log: Callable[[str], None] = print) -> LatentUpscaler:
        """Has the network compiled while it is used; returns self.

        The first call at a size runs as it is. A thread compiles for that size meanwhile, and
        calls run compiled from when that is done (`compilation.ready`): none waits. The first of
        these are timed, every second one as it is, and the faster way is kept. What cannot be
        compiled runs as it is, and `log` is told in one line.
        """
        if self.compilation is None:
            self.compilation = Compilation(self.network, self.name, log)
        return self

    def uncompile(self) -> LatentUpscaler:
        """Undoes `compile`; returns self."""
        if self.compilation is not None:
            self.compilation = None
            as_they_were(self.network)
        return self

    def __call__(
        self,
        latent: Tensor,
        size: tuple[int, int],
        should_stop: Callable[[], bool] | None = None,
        *,
        tile: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """A latent (N, C, H, W) in UNet scale as (N, C, *size) in UNet scale.

        Dtype and device of the result are the input's. At the network's factor the result is
        the network's; other sizes take as many passes as bring both sides to the target or
        past it, then resampling. A target that is no larger than the input on either axis is
        resampled only, and the input's own size gives the input back.

        should_stop: asked before every step inside the network; on True the call raises
            `Interrupted`.
        tile: run the network on overlapping squares of this many latent pixels, one after the
            other; less memory, and another result, as most networks look at the whole latent.
        progress: told before every step about which part is done, rising from 0 to 1.

        Raises `NotFiniteError` where a network in half precision overflowed, and `ValueError`
        for a latent that is not four-dimensional floating point or has another number of
        channels, and for a size that is not positive.
        """
        height, width = self._check(latent, size)
        if (height, width) == tuple(latent.shape[-2:]):
            return latent
        call = Call(self.name, should_stop, progress)
        with torch.no_grad(), _no_autocast(self.device), call:
            x = latent.to(self.device, torch.float32)
            if height <= x.shape[-2] and width <= x.shape[-1]:
                x = resample(x, (height, width))
            else:
                x = self.space.unet.to(self.input_scale, x)
                x = self._checked_passes(x, (height, width), tile, call)
                x = self.input_scale.to(self.space.unet, x)
                x = resample(x, (height, width), AFTER_PASSES)
            return x.to(latent.device, latent.dtype)

    def _checked_passes(
        self, x: Tensor, size: tuple[int, int], tile: int | None, call: Call
    ) -> Tensor:
        """`_passes` in the network's precision, float32 to float32."""
        call.expects(sum(high * wide for high, wide in self._sizes(x, size)))
        result = self._passes(x.to(self.dtype), size, tile, call).float()
        overflowed = self.dtype != torch.float32 and not bool(torch.isfinite(result).all())
        if overflowed and bool(torch.isfinite(x).all()):
            raise NotFiniteError(f"{self.name} overflows in {self.dtype}")
        return result

    def _passes(
        self, x: Tensor, size: tuple[int, int], tile: int | None, call: Call | None = None
    ) -> Tensor:
        """The network, run until both sides reach `size` (the last pass may go past it)."""
        call = call or Call(self.name)

        def network(part: Tensor) -> Tensor:
            call.begins(part.shape[-2] * part.shape[-1])
            if self.network.scale is None:
                return self._network(part, size=self._step(part.shape[-2:], size))
            return self._network(part)

        for _ in self._sizes(x, size):
            if tile is not None and self.network.scale is not None:
                x = tiled(network, x, self.network.scale, tile)
            else:
                x = network(x)
        return x

    def _network(self, x: Tensor, **how: Any) -> Tensor:
        if self.compilation is None:
            return self.network(x, **how)
        return self.compilation.run(self.network, x, **how)

    def _sizes(self, x: Tensor, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (height, width) of each pass's input on the way from x to `size`."""
        sizes, (height, width) = [], x.shape[-2:]
        while height < size[0] or width < size[1]:
            sizes.append((height, width))
            following = self._step((height, width), size)
            if following == (height, width):
                break  # three pixels by 1.25 stay three: resampling does the rest
            height, width = following
        return sizes

    def _step(self, sides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
        """The size that a pass makes of `sides` on the way to `size`."""
        scale = self.network.scale
        if scale is not None:
            height, width = (int(side * scale) for side in sides)
            return height, width
        largest = getattr(self.network, "max_scale", 2.0)
        # Never smaller: the network only enlarges, and the resampling at the end does the rest.
        height, width = (
            min(max(target, side), int(side * largest)) for side, target in zip(sides, size)
        )
        return height, width

    def _check(self, latent: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        if latent.dim() != 4 or not latent.is_floating_point():
            raise ValueError(
                "a latent is a floating-point tensor (N, C, H, W); this one is "
                f"{latent.dtype} of shape {tuple(latent.shape)}"
            )
        if latent.shape[1] != self.space.channels:
            raise ValueError(
                f"{self.name} takes latents of {self.space.label}, which have "
                f"{self.space.channels} channels; this one has {latent.shape[1]}"
            )
        height, width = (int(side) for side in size)
        if height < 1 or width < 1 or not latent.numel():
            raise ValueError(f"nothing to upscale: {tuple(latent.shape)} to {height}x{width}")
        return height, width


def load(
    id_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    space: str | None = None,
) -> LatentUpscaler:
    """The upscaler of a catalogue id (`bundled-sd15`) or of a file of weights.

    A file under a published name, or converted from a published file, gets that entry's latent
    space and input scale; another one what its metadata or the JSON file beside it say (`space`,
    `input`: "raw", "unet" or a scaling factor, hyperparameters), or its name (my-upscaler-sdxl),
    with `space` ("sd15", "sdxl", "sd3", "flux") for a file without. Nothing is fetched.

    Raises `WeightsError`: an unknown id, a file that is missing, damaged or of no architecture
    known here, or one whose latent space nothing tells.
    """
    entry = CATALOG.get(str(id_or_path))
    path = files.find(entry) if entry is not None else Path(id_or_path)
    if not path.is_file():
        raise WeightsError(
            f"{id_or_path}: neither a file nor one of the models {', '.join(CATALOG)}"
        )
    # A host's inference mode would make tensors of them that nothing outside it may write to.
    with torch.inference_mode(False):
        content = reading.read(path)
        shapes = {key: tuple(tensor.shape) for key, tensor in content.tensors.items()}
        what = describe(path, shapes, content.metadata, space)
        try:
            network = from_state_dict(content.tensors, **what.hyperparameters)
        except (StateDictError, TypeError) as error:
            raise WeightsError(f"{path}: {error}") from error
        network.requires_grad_(False).to(device=device, dtype=dtype)
    name = what.entry.id if what.entry is not None else path.name
    return LatentUpscaler(network, what.space, what.input_scale, name, what.entry)


@contextmanager
def _no_autocast(device: torch.device) -> Any:
    """Keeps a caller's autocast from choosing the network's precision."""
    with ExitStack() as stack:
        for kind in {"cpu", device.type} & {"cpu", "cuda", "xpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
