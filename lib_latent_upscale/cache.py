"""Loaded upscalers, kept between jobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from .inference import LatentUpscaler, load

_Key = tuple[Path, int, int]


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
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            upscaler = self._loaded.get(key)
            if upscaler is None:
                upscaler = self._loaded[key] = load(path)
            self._loaded.move_to_end(key)
            while len(self._loaded) > self.limit:
                self._loaded.popitem(last=False)
            return upscaler

    def clear(self) -> None:
        """Forgets all of them."""
        with self._lock:
            self._loaded.clear()
