"""Tasks from a user's own Python file (`python:PATH.py[:NAME]`).

The file defines a subclass of Task, or a reward function with the signature of TRL or of verl.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.data.shapes import value_at
from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.tasks.row_source import SOURCE_OPTIONS, RowSource, read_examples
from schoolhouse.tasks.user_file import definition, load_module, raised_at
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

TRL_SIGNATURE = "f(prompts, completions, **kwargs) -> list of floats, as in TRL"
VERL_SIGNATURE = "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float, as in verl"


def open_python(rest: str, seed: int = 0, **options: str) -> Task:
    """Open the Task or the reward function of a Python file. The file is run in the main process and in each worker
    process.

    The part `:NAME` is optional if the file has only one Task or only one reward function. A reward function needs
    problems from the option `data=PATH`, and accepts the options of a data file (docs/data.md). The options of a Task
    are passed as arguments to its class. Raises SchoolError if the file has a mistake; the message names the file, the
    line and the mistake.
    """
    file, separator, name = rest.partition(".py:")
    path = Path(file + ".py" if separator else rest)
    module = load_module(path, "python:PATH.py or python:PATH.py:NAME")
    chosen = _choose(module, path, name)
    if isinstance(chosen, type):
        return _open_class(chosen, path, seed, options)
    return _open_reward(chosen, path, seed, options)


def _choose(module: ModuleType, path: Path, name: str) -> Any:
    """Find the Task or reward function with this name.

    If no name is given, the file must contain only one Task or only one reward function.
    """
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    tasks = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, Task)}
    functions = {key: value for key, value in own.items() if isinstance(value, FunctionType)}
    rewards = {key: value for key, value in functions.items() if _signature_style(value)}
    known = tasks | rewards
    advice = f"write one of them, such as {TRL_SIGNATURE}, or {VERL_SIGNATURE}"
    if name:
        if name in known:
            return known[name]
        if name in own:
            raise SchoolError(
                f"{definition(own[name])}: `{name}` is neither a subclass of Task nor a reward function; {advice}"
            )
        raise SchoolError(f"{path} has no task or reward function `{name}`{suggest(name, list(known))}")
    candidates = tasks or rewards
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise SchoolError(
            f"{path} defines {', '.join(candidates)}; choose one, for example python:{path}:{next(iter(candidates))}"
        )
    others = [f"`{key}{inspect.signature(value)}` ({definition(value)})" for key, value in functions.items()]
    if others:
        raise SchoolError(f"{path} has no subclass of Task and no reward function, only {', '.join(others)}; {advice}")
    raise SchoolError(f"{path} has no subclass of Task and no reward function; {advice}")


# ---- tasks


def _open_class(cls: type[Task], path: Path, seed: int, options: Mapping[str, str]) -> Task:
    parameters = inspect.signature(cls).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            known = [name for name in parameters if name != "seed"]
            raise SchoolError(f"{definition(cls)}: {cls.__name__} has no option `{option}`{suggest(option, known)}")
    arguments = {**({"seed": seed} if "seed" in parameters else {}), **options}
    for name in _missing_arguments(cls, arguments):
        spec = f"python:{path}:{cls.__name__}?{name}=VALUE"
        raise SchoolError(f"{definition(cls)}: {cls.__name__} needs the option `{name}`; write {spec}")
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
    """Raise SchoolError if a method of the task does not accept the arguments of the Task method that it overrides."""
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
                f"{definition(method)}: {cls.__name__}.{name}{inspect.signature(method)} must accept "
                f"the call {name}({signature}); give the method these parameters"
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
        raise SchoolError(f"{path}: a reward function needs a file of problems; add ?data=PATH.jsonl to the task")
    data, holdout = options.pop("data"), options.pop("holdout", "tenth")
    return RewardFunctionTask(function, path, seed, RowSource.of(data, options), holdout)


class RewardFunctionTask(DatasetTask):
    """A task with the problems of a file, graded by a reward function.

    The reward function gets one answer at a time, without the thought. A function with TRL's signature gets the columns
    of the row by name. A function with verl's signature gets `ground_truth`: the unchanged value of
    `reward_model.ground_truth`, the value of the column `ground_truth`, or else the reference. A row must have a
    prompt, but needs no reference. If the function returns None or a number that is not finite, the verdict has no
    reward.
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
                    f"{self._place}: the parameter `{parameter.name}` is positional-only, but arguments are passed by "
                    "name; remove the `/` from the parameters of the function"
                )
        for row, (problem, _, no_answer) in enumerate(examples, 1):
            arguments = self._arguments(problem, "")
            if self._style == "verl" and self._ground_truth(problem) == "":
                raise SchoolError(f"{self._place} needs a ground truth, but row {row} of {source.path} {no_answer}")
            for name in _missing_arguments(function, arguments):
                hint = suggest(name, sorted(arguments))
                raise SchoolError(
                    f"{self._place} needs the column `{name}`, but row {row} of {source.path} has none{hint}"
                )

    @cached_property
    def all_problems(self) -> list[Problem]:
        """The problems of all rows of the data file, in the order of the file."""
        return self._problems

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Call the reward function with the text after the thought, and return its result as a verdict."""
        arguments = self._arguments(problem, completion.answer)
        for name in _missing_arguments(self._function, arguments):
            return Verdict(None, f"{self._place} needs the column `{name}`, but problem {problem.id} has none")
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
                return Verdict(None, f"{self._place} returned a dict without the key `score` (its keys: {keys})")
            parts = {key: float(value) for key, value in result.items() if _is_number(value)}
            result = result["score"]
        if result is None:
            return Verdict(None, f"{self._place} returned None", parts)
        if not _is_number(result):
            return Verdict(None, f"{self._place} returned {str(result)[:40]!r}, which is not a finite number", parts)
        return Verdict(float(result), "", parts)

    def normalized_answer(self, completion: Completion) -> Hashable | None:
        r"""Return the answer in \boxed{} or <answer>, or after `####` or `Answer:`, or else the whole text."""
        return normalized_answer(completion, "auto")

    def _arguments(self, problem: Problem, answer: str) -> dict[str, Any]:
        """Select the arguments that the reward function accepts, by the names of its parameters."""
        row = problem.info
        if self._style == "verl":
            available = {
                "data_source": row.get("data_source", problem.source),
                "solution_str": answer,
                "ground_truth": self._ground_truth(problem),
                "extra_info": row.get("extra_info") or {},
            }
        else:
            available: dict[str, Any] = {name: [value] for name, value in row.items()}
            if problem.reference:
                available.setdefault("reference", [problem.reference])
            if isinstance(row.get("prompt"), list) or len(problem.messages) > 1:  # conversational: messages, not text
                available["prompts"] = [[{"role": m.role, "content": m.content} for m in problem.messages]]
                available["completions"] = [[{"role": "assistant", "content": answer}]]
            else:
                available["prompts"], available["completions"] = [problem.messages[-1].content], [answer]
            for name in ("prompt", "completion"):  # TRL does not pass them as columns either
                available.pop(name, None)
        return {name: value for name, value in available.items() if self._takes_any or name in self._parameters}

    def _ground_truth(self, problem: Problem) -> Any:
        """Return the ground truth of a problem in the form of verl's rows: text, a number, a list or a mapping."""
        if not self._mapped:
            for key in ("reward_model.ground_truth", "ground_truth"):
                if (value := value_at(problem.info, key)) is not None:
                    return value
        return problem.reference


def _missing_arguments(function: FunctionType | type, arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters that have no default value and are not in `arguments`."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.default is parameter.empty
        and parameter.name not in arguments
    ]


def _is_number(value: object) -> bool:
    """Return True if a value is a finite number of Python, numpy or torch."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return False
    try:
        return math.isfinite(float(value))  # ty: ignore
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False
