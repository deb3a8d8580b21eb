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

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, read_json, to_json
from schoolhouse.runs.inspect import find_runs, inspect, is_run
from schoolhouse.runs.manifest import flatten_numbers, read_config
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError

POLL_SECONDS = 2.0
"""Seconds between looks at a run that is followed."""

USAGE = "school track RUN --to trackio|wandb|tensorboard [--follow]"

Tell = Callable[[int, Mapping[str, float]], None]


class Track(BaseConfig):
    run: Path
    """A run folder. What was told is noted in it, in tracked.TRACKER.json."""
    to: Literal["trackio", "wandb", "tensorboard"] = "trackio"
    """Who is told. Each is installed by its own name (pip install trackio)."""
    project: str = "schoolhouse"
    """What the tracker files it under."""
    name: str = ""
    """The run's name there, instead of its folder's."""
    follow: bool = False
    """Go on until the run ends."""


def track(words: Sequence[str]) -> None:
    """school track RUN --to trackio|wandb|tensorboard [--follow]"""
    c = parse_options(Track, words, USAGE, ("run",))
    if c is None:
        return
    if c.to == "tensorboard" and c.model_fields_set & {"project", "name"}:
        raise SchoolError("tensorboard knows no projects and names: its files are in RUN/tensorboard")
    if not is_run(c.run):
        inside = ", ".join(map(str, find_runs(c.run)[:5])) if c.run.is_dir() else ""
        raise SchoolError(f"{c.run} is not a run folder" + (f"; it holds {inside}" if inside else ""))
    if not c.follow and not read_metrics(c.run):
        raise SchoolError(f"{c.run} has no numbers yet; of a pipeline, track its stages, which are runs of their own")
    noted = c.run / f"tracked.{c.to}.json"
    known = read_json(noted) if noted.exists() else {}
    place = known.setdefault(f"{c.project}/{c.name}", {"id": uuid4().hex[:8], "told": -1})
    with TRACKERS[c.to](c, place["id"], read_config(c.run / "config.yaml")) as tell:
        try:
            follow(c, tell, place, lambda: atomic_write(noted, to_json(known, indent=2)))
        finally:
            atomic_write(noted, to_json(known, indent=2))
    print(f"{c.to} was told of {c.run} up to step {place['told']}")


def follow(c: Track, tell: Tell, place: dict[str, Any], note: Callable[[], None]) -> None:
    """Tell of every step behind `place`, once or until the run ends."""
    while True:
        ends = not c.follow or inspect(c.run).state != "running"  # looked at before reading: no last step is missed
        for line in read_metrics(c.run):
            if line["step"] > place["told"]:
                step = line.pop("step")
                tell(step, flatten_numbers(line))
                place["told"] = step
        note()
        if ends:
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def _trackio(c: Track, identity: str, config: dict[str, Any]) -> Generator[Tell]:
    tracker = _part("trackio")
    name = c.name or f"{_name(c)}-{identity}"  # runs of one name are one run there
    own = {"auto_log_cpu": False, "auto_log_gpu": False}  # they would be of this process, not of the run's
    tracker.init(project=c.project, name=name, config=config, resume="allow", **own)
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
