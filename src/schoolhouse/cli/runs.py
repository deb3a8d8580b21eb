"""This module has the commands for run folders, which are `school runs`, `school doctor` and `school repeat`."""

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
    """Run folder, folder with runs, or model (folder or name). Runs are checked; a model is described."""


def doctor(args: Sequence[str]) -> None:
    """Run the command `school doctor [RUN|MODEL]`."""
    c = parse_options(Doctor, args, "school doctor [RUN|MODEL]", ("folder",))
    if c is None:
        return
    from schoolhouse.runs.doctor import check_machine
    from schoolhouse.runs.inspect import check, find_runs, inspect

    if c.folder is not None and _is_model(c.folder):
        from schoolhouse.hub.describe import describe_model, render

        description = describe_model(c.folder)
        print(render(description))
        if description.problems:
            raise SystemExit(1)
        return
    for finding in check_machine(c.folder or Path()):
        print(f"{finding.topic:16}  {finding.result}" + (f"\n{'':16}  -> {finding.advice}" if finding.advice else ""))
    if c.folder is None:
        return
    folders = find_runs(c.folder)
    if not folders:
        raise SchoolError(f"found no run in {c.folder}: a run folder has the files config.yaml and manifest.json")
    damaged = 0
    for folder in folders:
        problems = check(folder)
        damaged += bool(problems)
        print(f"\n{folder}")
        if problems:
            print("\n".join(f"  {problem}" for problem in problems))
        else:
            status = inspect(folder)
            print(
                f"  intact; {_summary(status)}; recording and saving took {100 * status.io_fraction:.1f} % of its time"
            )
            if status.slowest_grading is not None:
                print(f"  the slowest grading of a completion took {status.slowest_grading:.2g} s")
    if damaged:
        raise SchoolError(f"{damaged} of {len(folders)} run folders have problems; the output above names the problems")


def _is_model(folder: Path) -> bool:
    """Return whether a path is a model folder or the name of a model. A folder with runs is no model folder."""
    from schoolhouse.runs.hub_cache import parse_hub_name
    from schoolhouse.runs.inspect import find_runs

    if not folder.exists():
        return parse_hub_name(str(folder)) is not None
    names = ("config.json", "adapter_config.json", "tokenizer.json", "*.safetensors", "pytorch_model*.bin")
    found = folder.suffix == ".gguf" or any(path for name in names for path in folder.glob(name))
    return found and not find_runs(folder)


class Runs(BaseConfig):
    folder: Path = Path("runs")
    """Folder that contains runs, also in subfolders."""


def runs(args: Sequence[str]) -> None:
    """Run the command `school runs [FOLDER]`."""
    c = parse_options(Runs, args, "school runs [FOLDER]", ("folder",))
    if c is None:
        return
    from schoolhouse.runs.inspect import find_runs, inspect

    folders = find_runs(c.folder) if c.folder.is_dir() else []
    if not folders:
        raise SchoolError(f"found no run in {c.folder}: give the folder that contains your runs")
    for folder in folders:
        try:
            print(f"{folder}: {_summary(inspect(folder))}")
        except SchoolError as error:
            print(f"{folder}: unreadable ({error})")


def _summary(status: RunStatus) -> str:
    """Return the status of a run in one line, such as `grpo, finished, 80 of 80 steps, 2 min 5 s, reward 0.750`."""
    done, total = status.steps
    unit = "stages" if status.recipe == "pipeline" else "steps"
    progress = f"{done} of {total} {unit}" if total is not None else f"{done} {unit}"
    parts = [status.recipe, status.state, progress, duration(status.seconds), status.result]
    return ", ".join(part for part in parts if part)


class Repeat(BaseConfig):
    run: Path
    """Folder of a finished run or pipeline."""
    dir: Path | None = None
    """Folder of the repeated run; none: RUN-repeat."""


def repeat(args: Sequence[str]) -> None:
    """Run the command `school repeat RUN [--dir FOLDER]`."""
    c = parse_options(Repeat, args, "school repeat RUN [--dir FOLDER]", ("run",))
    if c is None:
        return
    from schoolhouse.runs.inspect import compare, inspect
    from schoolhouse.runs.manifest import environment_changes, read_manifest
    from schoolhouse.runs.pipeline import repeat_run

    state = inspect(c.run).state
    if state != "finished":
        raise SchoolError(f"the run {c.run} is {state}: finish this run before you repeat it")
    folder = c.dir or c.run.resolve().with_name(f"{c.run.resolve().name}-repeat")
    repeat_run(c.run, folder)
    changed = compare(c.run, folder)
    if not changed:
        print(f"the same bits: weights, metrics and rollouts of {c.run} and {folder}")
        return
    environment = environment_changes(*(read_manifest(run / "manifest.json") for run in (c.run, folder)))
    reason = ["changes of the environment:", *environment] if environment else ["the environments are the same"]
    raise SchoolError("\n".join([f"{c.run} and {folder} differ:", *changed, *reason]))
