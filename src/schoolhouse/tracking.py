"""`school track`: the numbers of a run in the tracker that a team already looks at.

A process of its own reads the run folder, which stays the truth: whatever befalls a tracker, no run waits for it or
fails with it. A run that was resumed repeats its steps in the same bits, so a step once told is never told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from schoolhouse.commands import options
from schoolhouse.config import Frozen
from schoolhouse.durable import read_object, to_json, write_whole
from schoolhouse.records import numbers, read_config
from schoolhouse.run import read_metrics
from schoolhouse.runs import find_runs, is_run, look
from schoolhouse.types import SchoolError

EVERY = 2.0
"""Seconds between looks at a run that is followed."""

USAGE = "school track RUN --to trackio|wandb|tensorboard [--follow]"

Tell = Callable[[int, Mapping[str, float]], None]


class Track(Frozen):
    run: Path
    """A run folder. What was told, and to whom, is noted in its tracked.json."""
    to: Literal["trackio", "wandb", "tensorboard"] = "trackio"
    """Who is told. Each is installed by its own name (pip install trackio)."""
    project: str = "schoolhouse"
    """What the tracker files it under; tensorboard knows no projects: its files are in RUN/tensorboard."""
    name: str = ""
    """The run's name there, instead of its folder's."""
    follow: bool = False
    """Go on until the run ends."""


def track(words: Sequence[str]) -> None:
    """school track RUN --to trackio|wandb|tensorboard [--follow]"""
    c = options(Track, words, USAGE, ("run",))
    if c is None:
        return
    if not is_run(c.run):
        inside = ", ".join(map(str, find_runs(c.run)[:5])) if c.run.is_dir() else ""
        raise SchoolError(f"{c.run} is not a run folder" + (f"; it holds {inside}" if inside else ""))
    noted = c.run / "tracked.json"
    known = read_object(noted) if noted.exists() else {}
    place = known.setdefault(f"{c.to} {c.project}", {"id": uuid4().hex[:8], "told": -1})
    with TRACKERS[c.to](c, place["id"], read_config(c.run / "config.yaml")) as tell:
        while True:
            ends = not c.follow or look(c.run).state != "running"  # looked at before reading: no last step is missed
            for line in read_metrics(c.run):
                if line["step"] > place["told"]:
                    place["told"] = line.pop("step")
                    tell(place["told"], numbers(line))
            write_whole(noted, to_json(known, indent=2))
            if ends:
                break
            time.sleep(EVERY)
    print(f"{c.to} was told of {c.run} up to step {place['told']}")


@contextmanager
def _trackio(c: Track, _: str, config: dict[str, Any]) -> Generator[Tell]:
    tracker = _part("trackio")
    tracker.init(
        project=c.project, name=_name(c), config=config, resume="allow", auto_log_cpu=False, auto_log_gpu=False
    )
    try:
        yield lambda step, told: tracker.log(dict(told), step=step)
    finally:
        tracker.finish()


@contextmanager
def _wandb(c: Track, identity: str, config: dict[str, Any]) -> Generator[Tell]:
    tracker = _part("wandb")
    with tracker.init(project=c.project, name=_name(c), id=identity, resume="allow", config=config, dir=c.run) as run:
        yield lambda step, told: run.log(dict(told), step=step)


@contextmanager
def _tensorboard(c: Track, _: str, config: dict[str, Any]) -> Generator[Tell]:
    _part("tensorboard")
    with import_module("torch.utils.tensorboard").SummaryWriter(str(c.run / "tensorboard")) as writer:
        writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

        def tell(step: int, told: Mapping[str, float]) -> None:
            for name, value in told.items():
                writer.add_scalar(name, value, step)

        yield tell


TRACKERS: Mapping[str, Callable[[Track, str, dict[str, Any]], AbstractContextManager[Tell]]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}


def _name(c: Track) -> str:
    return c.name or c.run.resolve().name


def _part(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SchoolError(f"--to {name} needs a package that is not installed ({error}): pip install {name}") from None
