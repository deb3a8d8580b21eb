"""Inspect run folders: read the state of a run, find damaged files, and compare two runs."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from schoolhouse.runs.atomic_io import checksum, list_checkpoints, read_jsonl, verify_checkpoint
from schoolhouse.runs.manifest import differences, headline, read_config, read_manifest
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError

STEP_FOLDERS = ("rollouts", "trees")
"""Folders of a run that have one file for each step."""


@dataclass(frozen=True)
class RunStatus:
    """The status of a run folder.

    `state`: one of the words `finished`, `running`, `stopped` and `killed`. A run is `running` if a process uses its
        folder. A run is `killed` if its process ended without marking the run as stopped or finished.
    `steps`: the pair (number of finished steps, total number of steps); the total is None if the recipe has no key
        `steps`.
    `io_fraction`: the fraction of the run's total time that was spent on recording and saving.
    `slowest_grading`: the longest time for grading one completion in a worker process, in seconds; None if the run has
        no worker processes.
    `result`: the metrics of the last step, as text.
    """

    folder: Path
    recipe: str
    state: str
    steps: tuple[int, int | None]
    seconds: float
    io_fraction: float
    slowest_grading: float | None
    result: str


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "manifest.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """List all run folders in a folder, including the folder itself. A pipeline is listed before its stages."""
    return sorted(path.parent for path in folder.rglob("manifest.json") if is_run(path.parent))


def inspect(folder: Path) -> RunStatus:
    """Read the status of a run folder. Raises SchoolError if the folder is damaged or has another format."""
    manifest, config = read_manifest(folder / "manifest.json"), read_config(folder / "config.yaml")
    metrics = read_metrics(folder)
    state = str(manifest.get("state"))
    if state == "running" and not _is_locked(folder):
        state = "killed"
    elif state != "finished" and _is_locked(folder):
        state = "running"
    try:
        return _status(folder, manifest, config, metrics, state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchoolError(
            f"in {folder} one of manifest.json, config.yaml, metrics.jsonl and times.jsonl is damaged: a value is "
            f"missing or not a number ({type(error).__name__}: {error}); restore the whole file"
        ) from None


def _status(
    folder: Path, manifest: dict[str, Any], config: dict[str, Any], metrics: list[dict[str, Any]], state: str
) -> RunStatus:
    stages = config.get("stages")
    if stages is not None:
        done = sum((folder / stage["name"] / "evaluation.json").exists() for stage in stages)
        steps: tuple[int, int | None] = (done, len(stages))
    else:
        steps = (metrics[-1]["step"] + 1 if metrics else int(manifest.get("step", 0)), config.get("steps"))
    times = read_jsonl(folder / "times.jsonl")
    return RunStatus(
        folder,
        str(manifest.get("recipe")),
        state,
        steps,
        max([float(manifest.get("seconds", 0.0)), *(float(row["seconds"]) for row in times[-1:] if "seconds" in row)]),
        _io_fraction(times),
        max((float(row["grading"]["slowest"]) for row in times if "grading" in row), default=None),
        headline(metrics[-1]) if metrics else "",
    )


def _io_fraction(times: Sequence[dict[str, Any]]) -> float:
    """The fraction of the run's time that was spent on recording and saving.

    The start time of the first step in a session (one process of the run) is not recorded. The fraction includes a step
    only if the step before it was also recorded.
    """
    complete = [row for row in times if {"step", "seconds"} <= row.keys()]
    pairs = [
        (after["seconds"] - before["seconds"], after.get("io_seconds", 0.0))
        for before, after in pairwise(complete)
        if after["step"] == before["step"] + 1 and after["seconds"] > before["seconds"]
    ]
    return sum(io for _, io in pairs) / sum(total for total, _ in pairs) if pairs else 0.0


def _is_locked(folder: Path) -> bool:
    """Return True if a process currently uses the run folder."""
    try:
        with (folder / "lock").open() as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in (errno.EACCES, errno.EAGAIN)
    except OSError:  # no lock file, or no permission to open it
        return False
    return False


def check(folder: Path) -> list[str]:
    """Find all damage in a run folder.

    The result is a list with one sentence for each damaged file; without damage, the list is empty.
    """
    problems = []
    for read in (
        lambda: read_manifest(folder / "manifest.json"),
        lambda: read_config(folder / "config.yaml"),
        lambda: read_jsonl(folder / "metrics.jsonl"),
        lambda: read_jsonl(folder / "times.jsonl"),
        *(
            (lambda path=path: read_jsonl(path))
            for kind in STEP_FOLDERS
            for path in sorted((folder / kind).glob("*.jsonl"))
        ),
        *((lambda path=path: verify_checkpoint(path)) for path in list_checkpoints(folder / "checkpoints")),
    ):
        try:
            read()
        except SchoolError as error:
            problems.append(str(error))
    for name in ("metrics.jsonl", "times.jsonl"):
        text = (folder / name).read_bytes() if (folder / name).exists() else b""
        if text and not text.endswith(b"\n"):
            problems.append(f"{folder / name} ends in the middle of a line, as after a crash; resuming repairs it")
    problems += [
        f"{path} is left over from an interrupted save; resuming deletes it"
        for path in sorted((folder / "checkpoints").glob("*.partial"))
    ]
    return problems


# ---- repeated runs


def compare(one: Path, other: Path) -> list[str]:
    """Find the differences between two runs in weights, metrics and rollouts.

    Returns an empty list if the two runs are equal in every bit.
    """
    found = []
    for name in sorted({path.relative_to(folder) for folder in (one, other) for path in _bits(folder)}):
        if not ((one / name).exists() and (other / name).exists()):
            found.append(f"{name} is only in {one if (one / name).exists() else other}")
        elif checksum(one / name) != checksum(other / name):
            found.append(f"{name} differs" + _first_difference(one / name, other / name))
    return found


def _bits(folder: Path) -> Iterator[Path]:
    """Yield the files that a repeated run must reproduce: the metrics, the rollouts and the last model of a run.

    For a pipeline, the function also yields the files of all stages.
    """
    for run in find_runs(folder):
        yield from (path for path in (run / "metrics.jsonl",) if path.exists())
        yield from (path for kind in STEP_FOLDERS for path in sorted((run / kind).glob("*.jsonl")))
        yield from sorted(
            path for last in list_checkpoints(run / "checkpoints")[-1:] for path in last.glob("*.safetensors")
        )


def _first_difference(one: Path, other: Path) -> str:
    if one.suffix != ".jsonl":
        return ""
    for number, (first, second) in enumerate(zip(read_jsonl(one), read_jsonl(other), strict=False), 1):
        if first != second:
            lines = [line.strip() for line in differences(first, second)]
            return f" from line {number} on: " + "; ".join(lines[:3])
    return ": one has more lines than the other"
