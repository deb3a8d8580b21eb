"""This file handles Ctrl-C and SIGTERM: the run stops when the current step is finished."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType


class Stopped(KeyboardInterrupt):
    """The exception that is raised after a run was interrupted by Ctrl-C or SIGTERM and was saved."""


class Interrupts:
    """Counts the signals Ctrl-C and SIGTERM while the block of the `with` statement runs.

    The first signal does not interrupt the program, and the second signal interrupts the program immediately. The class
    `Interrupts` has no effect in other threads, because Python delivers signals only to the main thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        print("\nfinishing this step, then saving; press Ctrl-C again to stop at once", file=sys.stderr)
