"""Draw the progress of a command on stderr: on a terminal, one line is rewritten; elsewhere, a line is added every 30
s.

A separate thread draws, so the display also changes while the main thread loads or computes for a long time.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_DRAW_SECONDS = 0.5  # seconds between two drawings on a terminal
_FIRST_LINE_SECONDS, _LINE_SECONDS = 2.0, 30.0  # seconds until the first plain line, and between lines
_ERASE = "\r\x1b[K"  # to the start of the line, and erase the line


@contextmanager
def shown(text: Callable[[], str]) -> Generator[None]:
    """Show the text that the function returns, and update the text, while the block of the `with` statement runs."""
    on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with _on_terminal(text) if on_terminal else _as_lines(text):
        yield


@contextmanager
def _as_lines(text: Callable[[], str]) -> Generator[None]:
    stream = sys.stderr
    last = start = time.monotonic()
    lines = 0

    def draw() -> None:
        nonlocal last, lines
        now = time.monotonic()
        if now - start < _FIRST_LINE_SECONDS or (lines and now - last < _LINE_SECONDS):
            return
        last, lines = now, lines + 1
        with suppress(OSError, ValueError):  # the reader of the pipe may be gone
            print(text(), file=stream, flush=True)

    with _repeated(draw):
        yield


@contextmanager
def _on_terminal(text: Callable[[], str]) -> Generator[None]:
    line = _TerminalLine(sys.stderr, text)
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    guards = {name: _Above(stream, line) for name, stream in streams.items() if stream.isatty()}
    for name, guard in guards.items():
        setattr(sys, name, guard)
    try:
        with _repeated(line.draw):
            yield
    finally:
        for name, guard in guards.items():
            if getattr(sys, name) is guard:
                setattr(sys, name, streams[name])
        line.erase()


@contextmanager
def _repeated(draw: Callable[[], None]) -> Generator[None]:
    """Call the function in a thread, every half second, while the block of the `with` statement runs."""
    end = threading.Event()

    def run() -> None:
        while not end.wait(_DRAW_SECONDS):
            draw()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class _TerminalLine:
    """The progress line, which stays at the end of the terminal's output."""

    def __init__(self, terminal: TextIO, text: Callable[[], str]) -> None:
        self._terminal, self._text = terminal, text
        self._drawn = False
        self._at_line_start = True  # false while the command prints a line in several pieces
        self._lock = threading.RLock()  # a signal handler may print while the same thread prints

    def draw(self) -> None:
        with self._lock:
            if self._at_line_start:
                width = shutil.get_terminal_size().columns - 1
                self._terminal.write(_ERASE + self._text()[:width])
                self._terminal.flush()
                self._drawn = True

    def erase(self) -> None:
        with self._lock:
            if self._drawn:
                self._terminal.write(_ERASE)
                self._terminal.flush()
                self._drawn = False

    def write_above(self, stream: TextIO, text: str) -> int:
        """Write a text of the command in place of the progress line. After the next line break, the progress line is
        drawn again."""
        with self._lock:
            self.erase()
            self._at_line_start = text.endswith("\n") if text else self._at_line_start
            count = stream.write(text)
            stream.flush()  # the two streams share the terminal
            return count


class _Above:
    """A stream of the terminal. A text that is written to this stream replaces the progress line."""

    def __init__(self, stream: TextIO, line: _TerminalLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.write_above(self._stream, text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
