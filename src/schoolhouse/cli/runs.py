"""The commands that look after run folders: `school runs`, `school doctor`, `school repeat`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.runs.inspect import RunStatus


class Doctor(BaseConfig):
    folder: Path | None = None
    """A run folder to look through as well."""


def doctor(words: Sequence[str]) -> None:
    """school doctor [FOLDER]"""
    c = parse_options(Doctor, words, "school doctor [FOLDER]", ("folder",))
    if c is None:
        return
    from schoolhouse.runs.doctor import check_machine
    from schoolhouse.runs.inspect import check, find_runs, inspect

    for finding in check_machine(c.folder or Path()):
        print(f"{finding.topic:16}  {finding.result}" + (f"\n{'':16}  -> {finding.advice}" if finding.advice else ""))
    if c.folder is None:
        return
    found = find_runs(c.folder)
    if not found:
        raise SchoolError(f"{c.folder} holds no run: a run folder has a config.yaml and a manifest.json")
    wrong = 0
    for folder in found:
        harmed = check(folder)
        wrong += bool(harmed)
        print(f"\n{folder}")
        if harmed:
            print("\n".join(f"  {line}" for line in harmed))
        else:
            seen = inspect(folder)
            print(f"  whole; {_told(seen)}; recording and saving took {100 * seen.io_fraction:.1f} % of its time")
            if seen.slowest_grading is not None:
                print(f"  the slowest verdict took {seen.slowest_grading:.2g} s")
    if wrong:
        raise SchoolError(f"{wrong} of {len(found)} run folders need a look (above)")


class Runs(BaseConfig):
    folder: Path = Path("runs")
    """Where to look, in folders inside it too."""


def runs(words: Sequence[str]) -> None:
    """school runs [FOLDER]"""
    c = parse_options(Runs, words, "school runs [FOLDER]", ("folder",))
    if c is None:
        return
    from schoolhouse.runs.inspect import find_runs, inspect

    found = find_runs(c.folder) if c.folder.is_dir() else []
    if not found:
        raise SchoolError(f"there is no run in {c.folder}; give the folder that holds them")
    for folder in found:
        try:
            print(f"{folder}: {_told(inspect(folder))}")
        except SchoolError as error:
            print(f"{folder}: damaged ({error})")


def _told(seen: RunStatus) -> str:
    done, total = seen.steps
    unit = "stages" if seen.recipe == "pipeline" else "steps"
    of = f" of {total}" if total is not None else ""
    words = f"{seen.recipe}, {seen.state}, {done}{of} {unit}, {duration(seen.seconds)}"
    return words + (f", {seen.result}" if seen.result else "")


class Repeat(BaseConfig):
    run: Path
    """Folder of a run (or of a pipeline) that has finished."""
    dir: Path | None = None
    """Where to run it again; FOLDER-repeat unless given."""


def repeat(words: Sequence[str]) -> None:
    """school repeat RUN [--dir FOLDER]"""
    c = parse_options(Repeat, words, "school repeat RUN [--dir FOLDER]", ("run",))
    if c is None:
        return
    from schoolhouse.runs.atomic_io import read_json
    from schoolhouse.runs.inspect import compare, inspect
    from schoolhouse.runs.manifest import environment_changes
    from schoolhouse.runs.pipeline import repeat_run as again

    state = inspect(c.run).state
    if state != "finished":
        raise SchoolError(f"{c.run} is {state}, so there is nothing to compare with yet: let it finish first")
    folder = c.dir or c.run.resolve().with_name(f"{c.run.resolve().name}-repeat")
    again(c.run, folder)
    differing = compare(c.run, folder)
    if not differing:
        print(f"the same bits: weights, metrics and rollouts of {c.run} and {folder}")
        return
    around = environment_changes(*(read_json(one / "manifest.json") for one in (c.run, folder)))
    reason = ["what differs around them:", *around] if around else ["and nothing that a manifest records differs"]
    raise SchoolError("\n".join([f"{c.run} and {folder} are not the same:", *differing, *reason]))
