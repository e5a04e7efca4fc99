"""Loaded upscalers, kept between jobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from .inference import LatentUpscaler, load

_Key = tuple[Path, tuple[int, ...]]


class UpscalerCache:
    """The last `limit` upscalers used, each loaded once, on the CPU in float32.

    A file that changed on disk is loaded anew. Safe under threads: two that ask for the same
    model wait for one load. A load that fails leaves nothing behind.
    """

    def __init__(self, limit: int = 2) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._loaded: OrderedDict[_Key, LatentUpscaler] = OrderedDict()

    def get(self, path: Path) -> LatentUpscaler:
        """The upscaler of that file of weights; raises what `load` raises."""
        key = (path, _state(path))
        with self._lock:
            upscaler = self._loaded.get(key)
            if upscaler is None:
                upscaler = self._loaded[key] = load(path)
            self._loaded.move_to_end(key)
            while len(self._loaded) > self.limit:
                self._loaded.popitem(last=False)
            return upscaler

    def release(self, path: Path) -> None:
        """Forgets those of that file, which may be mapped into memory until then."""
        with self._lock:
            for key in [key for key in self._loaded if key[0] == path]:
                del self._loaded[key]

    def clear(self) -> None:
        """Forgets all of them."""
        with self._lock:
            self._loaded.clear()


def _state(path: Path) -> tuple[int, ...]:
    """What changes when the file or the sidecar file beside it does."""
    beside = path.with_suffix(".json")
    stats = [path.stat(), *([beside.stat()] if beside.is_file() else [])]
    return tuple(value for stat in stats for value in (stat.st_mtime_ns, stat.st_size))
