"""When a run is to stop before its end: its time is over, or someone asked."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType


class Stop:
    """Asked after every step.

    minutes: how long the run may take from now; 0 for as long as it needs.
    In a `with` block it takes SIGINT (Ctrl-C) and SIGTERM: the first one asks to stop after the
    step, the second stops at once.
    """

    def __init__(self, minutes: float = 0.0) -> None:
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._asked = False
        self._before: dict[int, object] = {}

    def wanted(self) -> bool:
        """Whether to stop."""
        return self._asked or (self._deadline is not None and time.monotonic() >= self._deadline)

    @property
    def reason(self) -> str:
        """Why, in words."""
        return "it was asked to stop" if self._asked else "its time is over"

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("stopping after this step; once more to stop at once", flush=True)
