"""Open a task by its spec, such as `school:addition`, `jsonl:PATH` or `python:PATH.py`."""

from __future__ import annotations

import sys
from multiprocessing import parent_process
from pathlib import Path

from schoolhouse.config import parse_query, suggest
from schoolhouse.data.files import format_of
from schoolhouse.runs.progress import phased
from schoolhouse.tasks.base import Task
from schoolhouse.types import SchoolError

KINDS = ("school", "word_problems", "jsonl", "code", "ifeval", "game24", "gym", "python")


@phased("opening the task")
def open_task(spec: str, seed: int = 0) -> Task:
    """Open the task of a spec of the form `KIND[:REST][?OPTION=VALUE&...]`.

    Examples of specs are "school", "school:addition+chain", "school:addition?digits=4", "word_problems?steps=1-2",
    "gym:chain_sum?size=500", "jsonl:PATH", "code:PATH", "ifeval:PATH", "game24:PATH.csv", "python:PATH.py",
    "python:PATH.py:name" and "python:PATH.py:reward?data=PATH.jsonl". The PATH of `jsonl:` and the PATH of `data` name
    a file of any format, a folder, a glob pattern or `hub:ORG/NAME`. Raises SchoolError with a suggestion if the kind
    is unknown. Each kind of task checks its own names and options.
    """
    body, _, query = spec.partition("?")
    kind, _, rest = body.partition(":")
    options = _options(spec, query)
    match kind:
        case "school":
            from schoolhouse.tasks.school.task import School

            task: Task = School.open(rest, seed, **options)
        case "word_problems":
            from schoolhouse.tasks.word_problems import open_word_problems

            task = open_word_problems(rest, seed, **options)
        case "jsonl":
            from schoolhouse.tasks.jsonl import open_jsonl

            task = open_jsonl(rest, seed, **options)
        case "code":
            from schoolhouse.tasks.code_task import open_code

            task = open_code(rest, seed, **options)
        case "ifeval":
            from schoolhouse.tasks.ifeval import open_ifeval

            task = open_ifeval(rest, seed, **options)
        case "game24":
            from schoolhouse.tasks.game24 import Game24

            task = Game24.open(rest, seed, **options)
        case "gym":
            from schoolhouse.tasks.gym import open_gym

            task = open_gym(rest, seed, **options)
        case "python":
            from schoolhouse.tasks.python_task import open_python

            task = open_python(rest, seed, **options)
        case _:
            raise SchoolError(f"unknown task `{spec}`{_suggestion(body)}")
    task.__dict__["spec"] = (spec, seed)  # a task may be a frozen dataclass
    paths = (rest, rest.partition(".py:")[0] + ".py", options.get("data"))
    if kind in ("game24", "python"):
        own = tuple(Path(path) for path in paths if path and Path(path).is_file())
        task.__dict__["files"] = tuple(dict.fromkeys((*own, *task.files)))
    if not task.name:
        task.__dict__["name"] = spec
    if parent_process() is None:  # a worker process opens the task again
        for note in task.notes:
            print(f"school: {note}", file=sys.stderr)
    return task


def data_spec(data: str) -> str:
    """Return the spec of the task for a data file `FILE[?OPTION=VALUE&...]`. In this spec, the default of the option
    `holdout` is `none`."""
    path, _, query = data.partition("?")
    options = parse_query(f"data `{data}`", query)
    return f"jsonl:{path}?" + "&".join(f"{name}={value}" for name, value in {"holdout": "none", **options}.items())


def _options(spec: str, query: str) -> dict[str, str]:
    options = parse_query(f"task `{spec}`", query)
    for name in ("seed", "families", "rest"):
        if name in options:
            raise SchoolError(f"task `{spec}`: `{name}` cannot be set after the `?`; remove this option from the task")
    return options


def _suggestion(body: str) -> str:
    """Return the end of an error message, which suggests a spec that is similar to `body`."""
    kind, colon, _ = body.partition(":")
    if not colon and (format_of(Path(body)) or Path(body).is_dir()):
        return f"; did you mean `jsonl:{body}`?"
    if not colon and body.endswith(".py"):
        return f"; did you mean `python:{body}`?"
    from schoolhouse.tasks.school.task import FAMILIES

    if kind in FAMILIES:
        return f"; did you mean `school:{body}`?"
    return suggest(kind, [*KINDS, *(f"school:{family}" for family in FAMILIES)])
