"""A user's own Python file: a Task, or a bare reward function as TRL or verl call it (`python:PATH.py[:NAME]`)."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.tasks.jsonl import read_rows
from schoolhouse.tasks.user_file import load_module
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

TRL = "f(prompts, completions, **kwargs) -> list of floats, as in TRL"
VERL = "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float, as in verl"


def open_python(rest: str, seed: int = 0, **options: str) -> Task:
    """The Task or reward function of a file; the file is run, here and in the worker processes that judge.

    NAME may be left out where the file has one Task or one reward function. A reward function needs problems:
    `?data=PATH.jsonl` (and `holdout=tenth|all|none`); the options of a Task are arguments of its class.
    Raises SchoolError naming the file and what is missing.
    """
    file, separator, name = rest.partition(".py:")
    path = Path(file + ".py" if separator else rest)
    module = load_module(path, "python:PATH.py or python:PATH.py:NAME")
    found = _choose(module, path, name)
    if isinstance(found, type):
        return _open_class(found, path, seed, options)
    return Rewarded(found, path, seed, **_reward_options(options, path))


# ---- the file


def _choose(module: ModuleType, path: Path, name: str) -> Any:
    """The named Task or reward function of a file, or its only one."""
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    tasks = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, Task)}
    functions = {key: value for key, value in own.items() if isinstance(value, FunctionType) and _style(value)}
    known = tasks | functions
    if name:
        if name in known:
            return known[name]
        if name in own:
            raise SchoolError(f"{path}: `{name}` is neither a subclass of Task nor a reward function: {TRL}; or {VERL}")
        raise SchoolError(f"{path} has no `{name}`{suggest(name, list(known))}")
    candidates = tasks or functions
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if not candidates:
        raise SchoolError(f"{path} has no subclass of Task and no reward function: {TRL}; or {VERL}")
    raise SchoolError(f"{path} has {', '.join(candidates)}; say which: python:{path}:{next(iter(candidates))}")


def _style(function: FunctionType) -> str:
    names = inspect.signature(function).parameters
    return "trl" if "completions" in names else "verl" if "solution_str" in names else ""


def _open_class(cls: type[Task], path: Path, seed: int, options: Mapping[str, str]) -> Task:
    accepted = inspect.signature(cls).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for option in options:
        if option not in accepted and not anything:
            raise SchoolError(f"{path}: {cls.__name__} takes no option `{option}`{suggest(option, list(accepted))}")
    try:
        return cls(**({"seed": seed} if "seed" in accepted else {}), **options)
    except SchoolError:
        raise
    except Exception as error:
        raise SchoolError(f"{path}: {cls.__name__} cannot be made: {type(error).__name__}: {error}") from error


# ---- reward functions


def _reward_options(options: Mapping[str, str], path: Path) -> dict[str, str]:
    for option in options:
        if option not in ("data", "holdout"):
            raise SchoolError(f"{path}: unknown option `{option}`{suggest(option, ['data', 'exam'])}")
    if "data" not in options:
        raise SchoolError(f"{path}: a reward function needs problems: add ?data=PATH.jsonl")
    return dict(options)


class Rewarded(DatasetTask):
    """The problems of a file, judged by a reward function. It is given one reply at a time, without its thinking.

    Columns of the row are passed by name, in TRL's manner; `ground_truth` is the reference, in verl's. None and
    numbers that are not finite mean "could not judge".
    """

    def __init__(self, function: FunctionType, path: Path, seed: int, data: str, holdout: str = "tenth") -> None:
        super().__init__(f"python:{path}:{function.__name__}", seed, holdout)
        self._function, self._style = function, _style(function)
        self._problems = [problem for problem, _ in read_rows(Path(data))]
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._takes = {parameter.name for parameter in parameters}
        given = self._arguments(self._problems[0], Completion(None, ""))
        for parameter in parameters:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and parameter.name not in given:
                raise SchoolError(
                    f"{path}: {function.__name__} needs `{parameter.name}`, which {data} does not have"
                    f"{suggest(parameter.name, sorted(given))}"
                )

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Every row of the data, in order."""
        return self._problems

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        """What the reward function says of the words after the thinking."""
        result = self._function(**self._arguments(problem, reply))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        name = self._function.__name__
        if self._style == "trl":
            result = list(result)
            if len(result) != 1:
                return Verdict(None, f"{name} returned {len(result)} rewards for 1 completion; it must return one each")
            (result,) = result
        parts: Mapping[str, float] = {}
        if isinstance(result, Mapping):
            if "score" not in result:
                return Verdict(None, f"{name} returned a dict without `score`")
            parts = {key: float(value) for key, value in result.items() if _is_number(value)}
            result = result["score"]
        if result is None:
            return Verdict(None, f"{name} returned None", parts)
        if not _is_number(result):
            return Verdict(None, f"{name} returned {str(result)[:40]!r}, which is not a finite number", parts)
        return Verdict(float(result), "", parts)

    def _arguments(self, problem: Problem, reply: Completion) -> dict[str, Any]:
        row = problem.info
        if self._style == "verl":
            offered = {
                "data_source": row.get("data_source", problem.source),
                "solution_str": reply.answer,
                "ground_truth": problem.reference,
                "extra_info": row.get("extra_info"),
            }
        else:
            # A prompt that is a conversation makes conversations of both; else both are text.
            talk = isinstance(row.get("prompt"), list)
            prompt = [{"role": m.role, "content": m.content} for m in problem.messages]
            completion = [{"role": "assistant", "content": reply.answer}]
            offered = {"reference": [problem.reference]} | {name: [value] for name, value in row.items()}
            offered["prompts"] = [prompt if talk else problem.messages[-1].content]
            offered["completions"] = [completion if talk else reply.answer]
            offered.pop("prompt", None)
        return {name: value for name, value in offered.items() if self._takes_all or name in self._takes}


def _is_number(value: object) -> bool:
    """Whether it is a finite number: of Python, or of numpy or torch, which have `__float__`."""
    return not isinstance(value, str) and hasattr(value, "__float__") and math.isfinite(float(value))  # ty: ignore
