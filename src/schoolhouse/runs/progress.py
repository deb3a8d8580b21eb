"""Show what a command is doing, how much of the work is done, and how much time is left.

    with progress("grpo", total=100) as advance:      opens the display
        with phase("sampling", 256, unit="answer") as sampled:
            sampled(1)
        advance(1, "reward 0.5")

A phase is a piece of work that is running. Phases can be nested, and the display shows all running phases in one line.
Only `progress` opens the display. If no display is open, a phase shows nothing, so library code can always use `phase`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from schoolhouse.runs import progress_display as display

Advance = Callable[[int, str], None]
"""A callback with two arguments: the number of newly finished units, and a note for the end of the line."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_MIN_SECONDS = 3.0  # before this time a rate is too uncertain to be shown

_open: _Line | None = None  # there is only one display at a time
_quiet = False


class Phase:
    """A piece of work that is running. Calling a phase with (more, note) adds `more` to the number of finished units.

    `unit`: the singular name of the unit, such as step, answer, token.
    `detail`: a function that describes the progress. If `detail` is None, `done` and `total` are shown.
    """

    def __init__(self, title: str, total: int | None = None, done: int = 0, unit: str = "step") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.note = ""
        self.detail: Callable[[], str] | None = None
        self.start = self._advanced = time.monotonic()
        self._first = done

    def __call__(self, more: int, note: str = "") -> None:
        self.done += more
        self._advanced = time.monotonic()
        self.note = note or self.note

    def describe(self) -> str:
        """Describe the phase, for example as `train: 5/10 steps, 12 s per step, 1 min 0 s left`."""
        now = time.monotonic()
        if self.detail:
            return f"{self.title}: {self.detail()}"
        if self.total is None and self.done == self._first:
            return f"{self.title}, {duration(now - self.start)}"
        of = "" if self.total is None else f"/{self.total:,}"
        parts = [f"{self.done:,}{of} {self.unit}s"]
        done, spent = self.done - self._first, self._advanced - self.start
        if done and now - self.start >= _MIN_SECONDS:
            parts.append(_rate(done / max(spent, 1e-9), self.unit))
            if self.total is not None:
                left = spent / done * (self.total - self.done) - (now - self._advanced)
                parts.append(f"{duration(max(0.0, left))} left")
        else:
            parts.append(duration(now - self.start))
        return f"{self.title}: {', '.join(parts)}"


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 1:
        return f"{per_second:,.{0 if per_second >= 10 else 1}f} {unit}s/s"
    return f"{1 / per_second:.2g} s per {unit}" if per_second > 0.01 else f"{duration(1 / per_second)} per {unit}"


class _Line:
    """The open display: its title, the running phases, and the thread that opened the display."""

    def __init__(self, title: str) -> None:
        self.title, self.start, self.thread = title, time.monotonic(), threading.get_ident()
        self.phases: list[Phase] = []

    def text(self) -> str:
        phases = list(self.phases)  # a copy, because another thread draws
        if not phases:
            return f"{self.title}: working, {duration(time.monotonic() - self.start)}"
        return " | ".join([*(phase.describe() for phase in phases), *(phase.note for phase in phases if phase.note)])


def set_quiet(quiet: bool) -> None:
    """Turn the progress display off, or on again. The command line uses this function for `--quiet`."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


@contextmanager
def command_progress(title: str) -> Generator[None]:
    """Open the display for a whole command. The title is shown while no phase is running."""
    with _display(title):
        yield


@contextmanager
def progress(title: str, total: int | None = None, done: int = 0, unit: str = "step") -> Generator[Phase]:
    """Show a phase on stderr while the block of the `with` statement runs, and open the display if no display is open.

    A terminal shows one line that is rewritten. A pipe or a file gets a line after 2 seconds, and then every 30
    seconds. `total` is None if the total number of units is unknown.
    """
    with _display(title), phase(title, total, done, unit) as running:
        yield running


@contextmanager
def phase(title: str, total: int | None = None, done: int = 0, unit: str = "step") -> Generator[Phase]:
    """Show a phase while the block of the `with` statement runs, if this thread has opened the display."""
    running, line = Phase(title, total, done, unit), _open
    if line is None or line.thread != threading.get_ident():
        yield running
        return
    line.phases.append(running)
    try:
        yield running
    finally:
        line.phases.remove(running)


def phased(title: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return a decorator. While the decorated function runs, the display shows a phase with this title."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with phase(title):
                return function(*args, **kwargs)

        return run

    return decorate


def tracked(
    title: str, items: Iterable[Item], total: int, unit: str, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Yield the items, and show their progress as a phase. An item with the size n counts as n units."""
    with phase(title, total, unit=unit) as advance:
        for item in items:
            yield item
            advance(size(item))


@contextmanager
def _display(title: str) -> Generator[None]:
    global _open
    if _open is not None or _quiet:
        yield
        return
    _open = line = _Line(title)
    try:
        with display.shown(line.text):
            yield
    finally:
        _open = None


def duration(seconds: float) -> str:
    """Format a duration, for example as 45 s, 3 min 20 s, or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
