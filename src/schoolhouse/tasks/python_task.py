"""A user's own Python file: a Task, or a reward function in TRL's or verl's signature (`python:PATH.py[:NAME]`)."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.data.shapes import value_at
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.tasks.row_source import SOURCE_OPTIONS, RowSource, read_examples
from schoolhouse.tasks.user_file import definition, load_module, raised_at
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

TRL_SIGNATURE = "f(prompts, completions, **kwargs) -> list of floats, as in TRL"
VERL_SIGNATURE = "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float, as in verl"


def open_python(rest: str, seed: int = 0, **options: str) -> Task:
    """The Task or reward function of a file. The file is run here and in each worker process.

    NAME may be left out where the file has one Task or one reward function. A reward function needs problems:
    `?data=PATH`, with the options of `jsonl:` (docs/data.md). The options of a Task are arguments of its class.
    Raises SchoolError naming the file, the line and the mistake.
    """
    file, separator, name = rest.partition(".py:")
    path = Path(file + ".py" if separator else rest)
    module = load_module(path, "python:PATH.py or python:PATH.py:NAME")
    chosen = _choose(module, path, name)
    if isinstance(chosen, type):
        return _open_class(chosen, path, seed, options)
    return _open_reward(chosen, path, seed, options)


def _choose(module: ModuleType, path: Path, name: str) -> Any:
    """The named Task or reward function of a file, or its only one."""
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    tasks = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, Task)}
    functions = {key: value for key, value in own.items() if isinstance(value, FunctionType)}
    rewards = {key: value for key, value in functions.items() if _signature_style(value)}
    known = tasks | rewards
    expected = f"neither a subclass of Task nor a reward function: {TRL_SIGNATURE}; or {VERL_SIGNATURE}"
    if name:
        if name in known:
            return known[name]
        if name in own:
            raise SchoolError(f"{definition(own[name])}: `{name}` is {expected}")
        raise SchoolError(f"{path} has no `{name}`{suggest(name, list(known))}")
    candidates = tasks or rewards
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise SchoolError(f"{path} has {', '.join(candidates)}; choose one: python:{path}:{next(iter(candidates))}")
    others = [f"`{key}{inspect.signature(value)}` ({definition(value)})" for key, value in functions.items()]
    if others:
        raise SchoolError(f"{path}: {', '.join(others)} is {expected}")
    raise SchoolError(f"{path} has no subclass of Task and no reward function: {TRL_SIGNATURE}; or {VERL_SIGNATURE}")


# ---- tasks


def _open_class(cls: type[Task], path: Path, seed: int, options: Mapping[str, str]) -> Task:
    parameters = inspect.signature(cls).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            known = [name for name in parameters if name != "seed"]
            raise SchoolError(f"{definition(cls)}: {cls.__name__} takes no option `{option}`{suggest(option, known)}")
    arguments = {**({"seed": seed} if "seed" in parameters else {}), **options}
    for name in _missing_arguments(cls, arguments):
        spec = f"python:{path}:{cls.__name__}?{name}=VALUE"
        raise SchoolError(f"{definition(cls)}: {cls.__name__} needs the option `{name}`: write {spec}")
    try:
        task = cls(**arguments)
    except SchoolError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SchoolError(f"{raised_at(error)}: {cls.__name__} cannot be created: {reason}") from error
    _check_methods(task)
    return task


def _check_methods(task: Task) -> None:
    """Raises SchoolError for a method that cannot be called with the arguments of the one it overrides."""
    cls = type(task)
    for name, original in vars(Task).items():
        if name.startswith("_") or not isinstance(original, FunctionType) or getattr(cls, name) is original:
            continue
        expected = [*inspect.signature(original).parameters.values()][1:]
        required = [parameter for parameter in expected if parameter.default is parameter.empty]
        method = getattr(task, name)
        try:
            for arguments in (required, expected):
                inspect.signature(method).bind(*arguments)
        except TypeError:
            signature = ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in expected)
            raise SchoolError(
                f"{definition(method)}: {cls.__name__}.{name}{inspect.signature(method)} is called as "
                f"{name}({signature}); give it these parameters"
            ) from None


# ---- reward functions


def _signature_style(function: FunctionType) -> str:
    names = inspect.signature(function).parameters
    return "trl" if "completions" in names else "verl" if "solution_str" in names else ""


def _open_reward(function: FunctionType, path: Path, seed: int, options: dict[str, str]) -> RewardFunctionTask:
    known = ("data", "holdout", *SOURCE_OPTIONS)
    for option in options:
        if option not in known:
            raise SchoolError(f"{path}: unknown option `{option}`{suggest(option, known)}")
    if "data" not in options:
        raise SchoolError(f"{path}: a reward function needs problems: add ?data=PATH.jsonl")
    data, holdout = options.pop("data"), options.pop("holdout", "tenth")
    return RewardFunctionTask(function, path, seed, RowSource.of(data, options), holdout)


class RewardFunctionTask(DatasetTask):
    """The problems of a file, graded by a reward function. It gets one answer at a time, without the thought.

    Columns of the row are passed by name as in TRL. `ground_truth` is `reward_model.ground_truth` of a row of verl's,
    unchanged, else a column of this name, else the reference. A row needs a prompt, and no reference. None and numbers
    that are not finite give a verdict without a reward.
    """

    def __init__(
        self, function: FunctionType, path: Path, seed: int, source: RowSource, holdout: str = "tenth"
    ) -> None:
        super().__init__(f"python:{path}:{function.__name__}", seed, holdout)
        self._function, self._style = function, _signature_style(function)
        self._place = f"{definition(function)}: {function.__name__}"
        examples, self.notes = read_examples(source, need="prompt")
        self.files, self._mapped = source.files, "answer" in source.options.mapping
        self._problems = [example.problem for example in examples]
        self._parameters = inspect.signature(function).parameters
        self._takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values())
        for parameter in self._parameters.values():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise SchoolError(
                    f"{self._place}: `{parameter.name}` is positional-only, but arguments are passed by name; "
                    "remove the `/` from its parameters"
                )
        for row, problem in enumerate(self._problems, 1):
            arguments = self._arguments(problem, "")
            for name in _missing_arguments(function, arguments):
                hint = suggest(name, sorted(arguments))
                raise SchoolError(f"{self._place} needs `{name}`, which row {row} of {source.path} does not have{hint}")

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Every row of the data, in order."""
        return self._problems

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """The reward function's result for the text behind the thought."""
        arguments = self._arguments(problem, completion.answer)
        for name in _missing_arguments(self._function, arguments):
            return Verdict(None, f"{self._place} needs `{name}`, which problem {problem.id} does not have")
        result = self._function(**arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        if self._style == "trl":
            if not isinstance(result, Iterable):
                kind = type(result).__name__
                return Verdict(None, f"{self._place} returned a {kind}; return a list with one reward per completion")
            rewards = list(result)
            if len(rewards) != 1:
                return Verdict(
                    None,
                    f"{self._place} returned {len(rewards)} rewards for 1 completion; return one reward per completion",
                )
            (result,) = rewards
        parts: Mapping[str, float] = {}
        if isinstance(result, Mapping):
            if "score" not in result:
                keys = ", ".join(map(repr, result)) or "none"
                return Verdict(None, f"{self._place} returned a dict without `score` (its keys: {keys})")
            parts = {key: float(value) for key, value in result.items() if _is_number(value)}
            result = result["score"]
        if result is None:
            return Verdict(None, f"{self._place} returned None", parts)
        if not _is_number(result):
            return Verdict(None, f"{self._place} returned {str(result)[:40]!r}, which is not a finite number", parts)
        return Verdict(float(result), "", parts)

    def _arguments(self, problem: Problem, answer: str) -> dict[str, Any]:
        """The arguments of the reward function that its parameters name."""
        row = problem.info
        if self._style == "verl":
            available = {
                "data_source": row.get("data_source", problem.source),
                "solution_str": answer,
                "ground_truth": self._ground_truth(problem),
                "extra_info": row.get("extra_info") or {},
            }
        else:
            available = {"reference": [problem.reference]} | {name: [value] for name, value in row.items()}
            if isinstance(row.get("prompt"), list) or len(problem.messages) > 1:  # conversational: messages, not text
                available["prompts"] = [[{"role": m.role, "content": m.content} for m in problem.messages]]
                available["completions"] = [[{"role": "assistant", "content": answer}]]
            else:
                available["prompts"], available["completions"] = [problem.messages[-1].content], [answer]
            for name in ("prompt", "completion"):  # TRL does not pass them as columns either
                available.pop(name, None)
        return {name: value for name, value in available.items() if self._takes_any or name in self._parameters}

    def _ground_truth(self, problem: Problem) -> Any:
        """The ground truth as verl's rows have it: text, a number, a list or a mapping."""
        if not self._mapped:
            for key in ("reward_model.ground_truth", "ground_truth"):
                if (value := value_at(problem.info, key)) is not None:
                    return value
        return problem.reference


def _missing_arguments(function: FunctionType | type, arguments: Mapping[str, Any]) -> list[str]:
    """Names of parameters without a default that are not among the arguments."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.default is parameter.empty
        and parameter.name not in arguments
    ]


def _is_number(value: object) -> bool:
    """Whether a value is a finite number: of Python, or of numpy or torch, which have `__float__`."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return False
    try:
        return math.isfinite(float(value))  # ty: ignore
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False
