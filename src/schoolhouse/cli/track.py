"""The command `school track` copies the metrics of a run to a tracker such as trackio, wandb or tensorboard.

A separate process reads the run folder. So a run never waits for a tracker, and never fails because of a tracker. A
resumed run repeats a step with exactly the same results. So `school track` logs each step only once.
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
"""Seconds between reads of a run that is followed."""

USAGE = "school track RUN --to trackio|wandb|tensorboard [--follow]"

LogFn = Callable[[int, Mapping[str, float]], None]
"""Logs the metrics of one step."""


class Track(BaseConfig):
    run: Path
    """A run folder. The file tracked.TRACKER.json in this folder contains the number of the last logged step."""
    to: Literal["trackio", "wandb", "tensorboard"] = "trackio"
    """Tracker. Install the Python package with the same name first, for example `pip install trackio`."""
    project: str = "schoolhouse"
    """Project in the tracker."""
    name: str = ""
    """Name of the run in the tracker; empty: the name of its folder."""
    follow: bool = False
    """Log new steps until the run ends."""


def track(args: Sequence[str]) -> None:
    """Run the command `school track RUN --to trackio|wandb|tensorboard [--follow]`."""
    c = parse_options(Track, args, USAGE, ("run",))
    if c is None:
        return
    if c.to == "tensorboard" and c.model_fields_set & {"project", "name"}:
        raise SchoolError(
            "--project and --name do not work with tensorboard: remove both (the logs are in RUN/tensorboard)"
        )
    if not is_run(c.run):
        inside = ", ".join(map(str, find_runs(c.run)[:5])) if c.run.is_dir() else ""
        raise SchoolError(
            f"{c.run} is not a run folder" + (f"; it contains the runs {inside}: choose one of them" if inside else "")
        )
    if not c.follow and not read_metrics(c.run):
        raise SchoolError(f"{c.run} has no metrics yet: wait for a step; for a pipeline, give the folder of one stage")
    path = c.run / f"tracked.{c.to}.json"
    tracked = read_json(path) if path.exists() else {}
    entry = tracked.setdefault(f"{c.project}/{c.name}", {"id": uuid4().hex[:8], "last_step": -1})
    with TRACKERS[c.to](c, entry["id"], read_config(c.run / "config.yaml")) as log:
        try:
            follow(c, log, entry, lambda: atomic_write(path, to_json(tracked, indent=2)))
        finally:
            atomic_write(path, to_json(tracked, indent=2))
    print(f"logged {c.run} to {c.to} up to step {entry['last_step']}")


def follow(c: Track, log: LogFn, entry: dict[str, Any], save: Callable[[], None]) -> None:
    """Log every step after the step `entry["last_step"]`, which is the last logged step.

    If `c.follow` is True, the function logs new steps until the run ends.
    """
    while True:
        last_pass = not c.follow or inspect(c.run).state != "running"  # before reading: no last step is missed
        for line in read_metrics(c.run):
            if line["step"] > entry["last_step"]:
                step = line.pop("step")
                log(step, flatten_numbers(line))
                entry["last_step"] = step
        save()
        if last_pass:
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def _trackio(c: Track, run_id: str, config: dict[str, Any]) -> Generator[LogFn]:
    tracker = _import("trackio")
    name = c.name or f"{_name(c)}-{run_id}"  # trackio joins runs of the same name
    machine_metrics = {"auto_log_cpu": False, "auto_log_gpu": False}  # they would describe this process, not the run
    tracker.init(project=c.project, name=name, config=config, resume="allow", **machine_metrics)
    try:
        yield lambda step, metrics: tracker.log(dict(metrics), step=step)
    finally:
        tracker.finish()


@contextmanager
def _wandb(c: Track, run_id: str, config: dict[str, Any]) -> Generator[LogFn]:
    tracker = _import("wandb")
    with tracker.init(project=c.project, name=_name(c), id=run_id, resume="allow", config=config, dir=c.run) as run:
        yield lambda step, metrics: run.log(dict(metrics), step=step)


@contextmanager
def _tensorboard(c: Track, _: str, config: dict[str, Any]) -> Generator[LogFn]:
    _import("tensorboard")
    with import_module("torch.utils.tensorboard").SummaryWriter(str(c.run / "tensorboard")) as writer:
        writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        yield log


TRACKERS: Mapping[str, Callable[[Track, str, dict[str, Any]], AbstractContextManager[LogFn]]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}


def _name(c: Track) -> str:
    return c.name or c.run.resolve().name


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SchoolError(f"--to {name} needs a missing package ({error}): run `pip install {name}`") from None
