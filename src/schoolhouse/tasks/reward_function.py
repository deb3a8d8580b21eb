"""Make tasks from reward functions of a user's Python file, with the signature of TRL, of verl, or for one
completion."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from schoolhouse.config import suggest
from schoolhouse.data.shapes import value_at
from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.async_calls import run_async
from schoolhouse.tasks.base import Batch, Case
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.tasks.row_source import SOURCE_OPTIONS, RowSource, read_examples
from schoolhouse.tasks.user_file import definition
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

TRL_SIGNATURE = "f(prompts, completions, **kwargs) -> list of floats, as in TRL"
VERL_SIGNATURE = "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float, as in verl"
SINGLE_SIGNATURE = "f(completion, reference) -> float"

Style = Literal["trl", "verl", "single", ""]
"""The signature of a function. The empty text means that the function is not a reward function."""

_OPTIONS = ("data", "holdout", "batch", *SOURCE_OPTIONS)


def signature_style(function: Callable[..., Any]) -> Style:
    """Return the signature of a function. The names of the function's parameters decide the signature."""
    names = inspect.signature(function).parameters
    marks: tuple[tuple[str, Style], ...] = (("completions", "trl"), ("solution_str", "verl"), ("completion", "single"))
    return next((style for mark, style in marks if mark in names), "")


def open_reward(function: Callable[..., Any], path: Path, seed: int, options: dict[str, str]) -> RewardFunctionTask:
    """Open the task of a reward function. Raises SchoolError if an option is unknown or missing."""
    for option in options:
        if option not in _OPTIONS:
            raise SchoolError(f"{path}: unknown option `{option}`{suggest(option, _OPTIONS)}")
    if "data" not in options:
        raise SchoolError(f"{path}: a reward function needs a file of problems; add ?data=PATH.jsonl to the task")
    data, holdout = options.pop("data"), options.pop("holdout", "tenth")
    batch = options.pop("batch", None)
    if batch is not None and batch not in get_args(Batch):
        raise SchoolError(f"{path}: option `batch` is `{batch}`{suggest(batch, get_args(Batch))}")
    if batch is not None and signature_style(function) != "trl":
        name = getattr(function, "__name__", "f")
        raise SchoolError(
            f"{definition(function)}: {name} grades one completion per call, so the option `batch` has no meaning; "
            f"leave out the option, or write a function with the signature {TRL_SIGNATURE}"
        )
    return RewardFunctionTask(function, path, seed, RowSource.of(data, options), holdout, cast(Batch | None, batch))


class RewardFunctionTask(DatasetTask):
    """A task with the problems of a file, graded by a reward function.

    The name of a parameter decides its value: prompt, completion (the answer, without the thought), thinking,
    completion_ids, or any column of the row. A function with TRL's signature gets lists, and the lists of prompts and
    completions are called `prompts` and `completions`. The option `batch` decides how many completions a call gets. A
    function with verl's signature gets `ground_truth`: the unchanged value of `reward_model.ground_truth`, or else of
    the column `ground_truth`, or else the reference. A row must have a prompt, but does not need a reference. If the
    function returns None or a number that is not finite, the verdict has no reward.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        path: Path,
        seed: int,
        source: RowSource,
        holdout: str = "tenth",
        batch: Batch | None = None,
    ) -> None:
        name = getattr(function, "__name__", "f")
        super().__init__(f"python:{path}:{name}", seed, holdout)
        self._function, self._style = function, signature_style(function)
        self._place = f"{definition(function)}: {name}"
        self.batch = batch or ("auto" if self._style == "trl" else "one")
        if self.batch == "one" and inspect.iscoroutinefunction(function):
            self.__dict__["grade"] = self._grade_async
        examples, self.notes = read_examples(source, need="prompt")
        self.files, self._mapped, self._data = source.files, "answer" in source.options.mapping, source.path
        self._problems = [example.problem for example in examples]
        self._rows = {problem.id: row for row, problem in reversed([*enumerate(self._problems, 1)])}
        self._parameters = inspect.signature(function).parameters
        self._takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values())
        for parameter in self._parameters.values():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise SchoolError(
                    f"{self._place}: the parameter `{parameter.name}` is positional-only, but arguments are passed by "
                    "name; remove the `/` from the parameters of the function"
                )
        for row, (problem, _, no_answer) in enumerate(examples, 1):
            values = self._values(problem, Completion(None, ""))
            if self._style == "verl" and self._ground_truth(problem) == "":
                raise SchoolError(f"{self._place} needs a ground truth, but row {row} of {source.path} {no_answer}")
            for missing in missing_arguments(function, values):
                hint = suggest(missing, sorted(values))
                raise SchoolError(
                    f"{self._place} needs the column `{missing}`, but row {row} of {source.path} has none{hint}"
                )

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Return the problems of all rows of the data file, in the order of the file."""
        return self._problems

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Call the reward function for one completion, and return its result as a verdict."""
        if self._style == "trl":
            try:
                return self.grade_batch([(problem, completion)])[0]
            except _BadListError as error:
                return Verdict(None, str(error))
        values = self._values(problem, completion)
        if name := next(iter(missing_arguments(self._function, values)), ""):
            return self._missing_column(name, problem)
        return self._verdict(self._call(self._accepted(values)), problem)

    async def _grade_async(self, problem: Problem, completion: Completion) -> Verdict:
        values = self._values(problem, completion)
        if name := next(iter(missing_arguments(self._function, values)), ""):
            return self._missing_column(name, problem)
        if self._style != "trl":
            return self._verdict(await self._function(**self._accepted(values)), problem)
        result = await self._function(**self._accepted({name: [value] for name, value in values.items()}))
        return self._verdict(self._list(result, 1)[0], problem)

    def grade_batch(self, cases: Sequence[Case]) -> list[Verdict]:
        """Call a function with TRL's signature once for all cases, and return its results as verdicts.

        Raises SchoolError if the function does not return a list with one reward per completion.
        """
        rows = [self._values(*case) for case in cases]
        missing = [next(iter(missing_arguments(self._function, values)), "") for values in rows]
        usable = [values for values, name in zip(rows, missing, strict=True) if not name]
        results: list[Any] = []
        if usable:
            names = dict.fromkeys(name for values in usable for name in values)
            columns = {name: [values.get(name) for values in usable] for name in names}
            results = self._list(self._call(self._accepted(columns)), len(usable))
        rest = iter(results)
        return [
            self._missing_column(name, problem) if name else self._verdict(next(rest), problem)
            for name, (problem, _) in zip(missing, cases, strict=True)
        ]

    def normalized_answer(self, completion: Completion) -> Hashable | None:
        r"""Return the answer in \boxed{} or <answer>, or after `####` or `Answer:`, or else the whole text."""
        return normalized_answer(completion, "auto")

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        result = self._function(**arguments)
        return run_async(result) if inspect.iscoroutine(result) else result

    def _list(self, result: Any, num_completions: int) -> list[Any]:
        noun = "completion" if num_completions == 1 else "completions"
        if not isinstance(result, Iterable) or isinstance(result, (str, bytes, Mapping)):
            kind = type(result).__name__
            raise _BadListError(f"{self._place} returned a {kind}; return a list with one reward per completion")
        rewards = list(result)
        if len(rewards) != num_completions:
            raise _BadListError(
                f"{self._place} returned {len(rewards)} rewards for {num_completions} {noun}; return one reward per "
                "completion"
            )
        return rewards

    def _verdict(self, result: Any, problem: Problem) -> Verdict:
        """Return the result of the function for one completion as a verdict."""
        row = self._rows.get(problem.id)
        which = f" (row {row} of {self._data})" if row else f" (problem {problem.id})"
        parts: Mapping[str, float] = {}
        if isinstance(result, Mapping):
            if "score" not in result:
                keys = ", ".join(map(repr, result)) or "none"
                return Verdict(None, f"{self._place} returned a dict without the key `score` (its keys: {keys}){which}")
            parts = {key: float(value) for key, value in result.items() if _is_number(value)}
            result = result["score"]
        if result is None:
            return Verdict(None, f"{self._place} returned None{which}", parts)
        if not _is_number(result):
            reason = f"{self._place} returned {str(result)[:40]!r}, which is not a finite number{which}"
            return Verdict(None, reason, parts)
        return Verdict(float(result), "", parts)

    def _missing_column(self, name: str, problem: Problem) -> Verdict:
        return Verdict(None, f"{self._place} needs the column `{name}`, but problem {problem.id} has none")

    def _values(self, problem: Problem, completion: Completion) -> dict[str, Any]:
        """Return all values that the function can get for one completion, by the names of its parameters.

        If a column has the same name as a value of the completion, the function gets the value of the completion.
        """
        row, answer = problem.info, completion.answer
        values: dict[str, Any] = dict(row)
        if problem.reference:
            values.setdefault("reference", problem.reference)
        values["thinking"], values["completion_ids"] = completion.thought, list(completion.token_ids)
        messages = [{"role": message.role, "content": message.content} for message in problem.messages]
        conversational = isinstance(row.get("prompt"), list) or len(messages) > 1
        prompt = messages if conversational else problem.messages[-1].content
        if self._style == "trl":
            for name in ("prompt", "completion"):  # TRL also does not pass these columns
                values.pop(name, None)
            values["prompts"] = prompt
            values["completions"] = [{"role": "assistant", "content": answer}] if conversational else answer
        else:
            values["prompt"], values["completion"] = prompt, answer
        if self._style == "verl":
            values["data_source"] = row.get("data_source", problem.source)
            values["solution_str"], values["ground_truth"] = answer, self._ground_truth(problem)
            values["extra_info"] = row.get("extra_info") or {}
        return values

    def _accepted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that the function accepts. As in verl, `**kwargs` gets only the four names of verl."""
        others = self._takes_any and self._style != "verl"
        names = {"data_source", "solution_str", "ground_truth", "extra_info"} if self._takes_any else set[str]()
        return {name: value for name, value in values.items() if others or name in self._parameters or name in names}

    def _ground_truth(self, problem: Problem) -> Any:
        """Return the ground truth of a problem in verl's format: a text, a number, a list or a mapping."""
        if not self._mapped:
            for key in ("reward_model.ground_truth", "ground_truth"):
                if (value := value_at(problem.info, key)) is not None:
                    return value
        return problem.reference


class _BadListError(SchoolError):
    """The error that a reward function did not return a list with one reward per completion."""


def missing_arguments(function: Callable[..., Any] | type, arguments: Mapping[str, Any]) -> list[str]:
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
