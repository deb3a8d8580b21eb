"""Ctrl-C and SIGTERM that wait until something can be left in order."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType


class Stopped(KeyboardInterrupt):
    """The user (or the machine) asked to stop, and the run has been saved."""


class Interrupts:
    """While the block runs, the first Ctrl-C or SIGTERM is counted in `heard`, a second one interrupts at once.

    Does nothing outside of the main thread, because Python delivers signals to that one alone.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        print("\nfinishing this step, then saving; Ctrl-C again stops at once", file=sys.stderr)
