"""Show the progress and the remaining time of a run: on a terminal as a bar, otherwise as a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""A callback. Its arguments: how many more units are done, and a note that is shown next to the bar."""

_LINE_SECONDS = 10.0  # seconds between plain lines
_showing = False  # there is only one bar at a time: code inside a step does not draw a second bar


@contextmanager
def progress(title: str, total: int | None, done: int = 0, unit: str = "step") -> Generator[Advance]:
    """Show progress on stderr while the block of the `with` statement runs.

    If `progress` is called inside the `with` block of another `progress`, the inner call shows nothing.

    `total` is None if the total number of units is unknown.
    """
    global _showing
    if _showing:
        yield lambda more, note="": None
        return
    _showing = True
    try:
        with _bar(title, total, done) if sys.stderr.isatty() else _lines(title, total, done, unit) as advance:
            yield advance
    finally:
        _showing = False


@contextmanager
def _bar(title: str, total: int | None, done: int) -> Generator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda more, note="": bar.update(task, advance=more, note=note)


@contextmanager
def _lines(title: str, total: int | None, done: int, unit: str) -> Generator[Advance]:
    start = last_line = time.monotonic()
    now = done

    def advance(more: int, note: str = "") -> None:
        nonlocal now, last_line
        now += more
        clock = time.monotonic()
        if clock - last_line < _LINE_SECONDS:
            return
        last_line = clock
        each = (clock - start) / max(1, now - done)
        left = f", {duration(each * (total - now))} left" if total else ""
        print(
            f"{title}: {now}{f'/{total}' if total else ''}, {each:.2g} s per {unit}{left}  {note}".rstrip(),
            file=sys.stderr,
        )

    yield advance


def duration(seconds: float) -> str:
    """Format a duration, for example as 45 s, 3 min 20 s, or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
