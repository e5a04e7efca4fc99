"""Upscaling so that the job finishes: whatever does not fit is tried again in a smaller way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .architectures.layers.chunks import DEFAULT_LIMIT, chunk_limit
from .cache import Model, Policy, UpscalerCache
from .inference import LatentUpscaler, NotFiniteError
from .memory import is_out_of_memory

_CPU = torch.device("cpu")

_TILE = 96
"""Latent pixels: 768 of the picture."""

_SMALL_LIMIT = 16 << 20
"""Bytes of what is computed on the way."""

_MARGIN = 1.3
"""On the estimate of what a run takes: for what libraries allocate, and for fragments."""

_SIZES_KNOWN = 64
"""Estimates that are kept."""


@dataclass(frozen=True)
class _Way:
    """One way to run a model."""

    device: torch.device
    dtype: torch.dtype
    words: str = ""
    tile: int | None = None
    limit: int = DEFAULT_LIMIT
    """See `architectures.layers.chunks`."""

    @property
    def is_first(self) -> bool:
        """Whether nothing has run out of memory before."""
        return not self.words


class Engine:
    """Runs the models of a cache.

    free: called with a device that ran out of memory, after the cache has left it: lets the host
        free what it can.
    log: told in one line what was done in another way than asked.
    """

    def __init__(
        self,
        cache: UpscalerCache,
        free: Callable[[torch.device], None] = lambda device: None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.cache, self._free, self._log = cache, free, log
        self._float32_only: set[str] = set()
        """Names of models that overflowed in half precision, or have no kernels for it here."""
        self._cpu_only: set[tuple[str, str]] = set()
        """Names of models, and types of devices that lack an operation of theirs in float32."""
        self._never_compiled: set[str] = set()
        """Names of models that cannot be compiled, or fail when they are."""
        self._working: dict[Hashable, int] = {}

    def upscale(
        self,
        model: Model,
        latent: Tensor,
        size: tuple[int, int],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[float], None] | None = None,
        limit: int | None = None,
        told: Callable[[torch.device, torch.dtype], None] = lambda device, dtype: None,
    ) -> Tensor:
        """As `LatentUpscaler.__call__`, on `device` (the latent's) in `dtype`, or as near to that
        as can be.

        A model that overflows in half precision, or for which the device has no kernels in it,
        runs in float32, from then on always; on the CPU if there are none in float32 either. Where
        memory runs out, all else leaves the device and it is tried once more, in smaller pieces;
        then in tiles; then on the CPU. Raises what the last way raises.

        limit: bytes of what is computed on the way, instead of `chunks.DEFAULT_LIMIT`.
        told: called with what each try runs on and in.
        compile: under `Policy.KEEP`, see `LatentUpscaler.compile`; a copy that is not kept would
            take with it what was compiled.
        """
        name = model.upscaler.name
        device = torch.device(device) if device is not None else latent.device
        if name in self._float32_only:
            dtype = torch.float32
        if (name, device.type) in self._cpu_only:
            device, dtype = _CPU, torch.float32
        tiles = model.upscaler.network.scale is not None
        ways = _ways(device, dtype, tiles, limit)
        way = next(ways)
        while True:
            told(way.device, way.dtype)
            try:
                return self._run(model, latent, size, way, compile, should_stop, progress)
            except (NotFiniteError, RuntimeError, MemoryError) as error:
                if way.device.type != "cpu" and way.dtype == torch.float32 and _is_unknown(error):
                    self._cpu_only.add((name, device.type))
                    self._log(f"{_line(error)}; {name} runs on the CPU from now on")
                    device = _CPU
                    ways = _ways(device, torch.float32, tiles, limit)
                    way = next(ways)
                    continue
                half = way.dtype != torch.float32
                if isinstance(error, NotFiniteError) or (half and _is_unknown(error)):
                    self._float32_only.add(name)
                    self._log(f"{_line(error)}; {name} runs in float32 from now on")
                    ways = _ways(device, torch.float32, tiles, limit)
                    way = next(ways)
                    continue
                following = next(ways, None) if is_out_of_memory(error) else None
                if following is None:
                    raise
                self._log(f"{name} ran out of memory on {way.device}; once more {following.words}")
                way = following
            # Outside of the handler: a traceback would hold what it failed with.
            self._make_room(device)

    def _run(
        self,
        model: Model,
        latent: Tensor,
        size: tuple[int, int],
        way: _Way,
        compile: bool,
        should_stop: Callable[[], bool] | None,
        progress: Callable[[float], None] | None,
    ) -> Tensor:
        """One try. By itself, so that when it fails nothing but the cache holds the copy."""
        working = self._working_bytes(model, latent, size, way)
        with (
            self.cache.use(model, way.device, way.dtype, working=working) as upscaler,
            chunk_limit(way.limit),
        ):
            self._set_compile(upscaler, compile and way.is_first)
            return upscaler(latent, size, should_stop, tile=way.tile, progress=progress)

    def _working_bytes(self, model: Model, latent: Tensor, size: tuple[int, int], way: _Way) -> int:
        """What to ask the host for: nothing on the CPU, or where it is tried with less already."""
        if way.device.type == "cpu" or not way.is_first:
            return 0
        key = (model.path, latent.shape, tuple(size), way.dtype, way.limit)
        working = self._working.get(key)
        if working is None:
            try:
                with chunk_limit(way.limit):
                    known = model.upscaler.working_bytes(latent.shape, size, way.dtype)
            except (RuntimeError, NotImplementedError):  # of a torch that cannot do without values
                known = 0
            if len(self._working) >= _SIZES_KNOWN:
                self._working.clear()
            working = self._working[key] = int(_MARGIN * known)
        return working

    def _set_compile(self, upscaler: LatentUpscaler, compile: bool) -> None:
        if upscaler.compilation is not None and upscaler.compilation.failed:
            self._never_compiled.add(upscaler.name)
        possible = self.cache.policy is Policy.KEEP and upscaler.name not in self._never_compiled
        if compile and possible:
            upscaler.compile(self._log)
        else:
            upscaler.uncompile()

    def _make_room(self, device: torch.device) -> None:
        self.cache.leave_device(device)
        self._free(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _ways(
    device: torch.device, dtype: torch.dtype, tiles: bool, limit: int | None
) -> Iterator[_Way]:
    """How to try, in turn."""
    limit = limit or DEFAULT_LIMIT
    small = min(limit, _SMALL_LIMIT)
    yield _Way(device, dtype, limit=limit)
    yield _Way(device, dtype, "in small pieces, with all else off the device", limit=small)
    if tiles:
        yield _Way(device, dtype, "in tiles, which changes the result a little", _TILE, small)
    if device.type != "cpu":
        yield _Way(_CPU, torch.float32, "on the CPU, which takes its time")


def _is_unknown(error: BaseException) -> bool:
    """Whether the device has no kernel for an operation in the precision: CPUs in float16 before
    torch 2.2, MPS and DirectML for some."""
    return any(words in str(error) for words in _UNKNOWN)


_UNKNOWN = ("not implemented for", "not currently implemented for", "Could not run 'aten::")


def _line(error: BaseException) -> str:
    """The first line of what an error says, which may go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
