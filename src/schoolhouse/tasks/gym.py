"""Tasks from the datasets of the package reasoning-gym (`gym:NAME`), with exact grading.

The scorers of reasoning-gym give partial scores to any text that contains the answer. To avoid partial scores, the task
first extracts the marked final answer, and only a score of exactly 1 counts as correct. The task refuses a dataset that
cannot be graded or reproduced.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.answers.extraction import extract_answer
from schoolhouse.tasks.answers.perturb import perturb_answer
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.types import Completion, Message, Problem, SchoolError, Verdict

DEFAULT_SIZE = 500
"""The default of `size`. Problems are generated at their first use; some datasets need one second per problem."""

DATA_SEED = 0
"""The seed of the problems is fixed. With another seed, a run trains on the same problems in another order."""

NO_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Datasets without reference answers. Without reference answers, a scorer cannot be checked."""

HASH_DEPENDENT = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"})
"""Datasets whose problems depend on Python's string hashes, which differ between processes."""


def open_gym(family: str, seed: int = 0, **options: str) -> Gym:
    """Open a reasoning-gym dataset by its name.

    The options are `size`, `holdout=tenth|all|none`, and the keys of the dataset's own config with JSON values. Raises
    SchoolError if the extra `gym` is not installed. Also raises SchoolError if a name or an option is unknown or
    refused.
    """
    try:
        factory: Any = importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise SchoolError(
            f"gym:{family} needs reasoning-gym: pip install 'schoolhouse[gym]' (the installation needs a C compiler)"
        ) from error
    if family not in factory.DATASETS:
        raise SchoolError(f"gym: unknown dataset `{family}`{suggest(family, sorted(factory.DATASETS))}")
    if family in NO_ANSWER:
        raise SchoolError(
            f"gym:{family} is refused, because the dataset has no reference answers to check its scorer; choose another"
        )
    if family in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise SchoolError(
            f"gym:{family} is refused, because its problems differ between processes; set the environment variable "
            "PYTHONHASHSEED=0 to use the dataset"
        )
    holdout = options.pop("holdout", "tenth")
    known = [field.name for field in fields(factory.DATASETS[family][1]) if field.name != "seed"]
    for option in options:
        if option not in known:
            raise SchoolError(f"gym:{family}: unknown option `{option}`{suggest(option, known)}")
    settings = {"size": DEFAULT_SIZE, **{name: _value(text) for name, text in options.items()}}
    try:
        dataset = factory.create_dataset(family, seed=DATA_SEED, **settings)
    except Exception as error:
        raise SchoolError(f"gym:{family}: {error or type(error).__name__} (options: {settings})") from error
    return Gym(family, dataset, seed, holdout)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Gym(DatasetTask):
    """A task with the problems of one reasoning-gym dataset, graded by the scorer of the dataset."""

    def __init__(self, family: str, dataset: Any, seed: int = 0, holdout: str = "tenth") -> None:
        super().__init__(f"gym:{family}", seed, holdout)
        self.family, self._dataset = family, dataset
        self._items: dict[int, Mapping[str, Any]] = {}

    @cached_property
    def all_problems(self) -> list[Problem]:
        """All problems of the dataset. The problems are generated when they are used for the first time."""
        return [self._problem(index) for index in range(len(self._dataset))]

    def audit_problems(self, limit: int | None = None) -> list[Problem]:
        """Return the first `limit` problems. The other problems of the dataset are not generated."""
        size = len(self._dataset)
        return [self._problem(index) for index in range(size if limit is None else min(limit, size))]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the scorer gives the marked final answer a score of exactly 1, otherwise 0.

        If the scorer raises an exception for the answer but accepts the reference, the reward is 0.
        """
        answer, reason = extract_answer(completion)
        if answer is None:
            return Verdict(0.0, reason)
        item = self._item(int(str(problem.info["index"])))
        if item["question"] != problem.messages[-1].content:
            return Verdict(None, f"gym:{self.family} cannot be reproduced: this process generated another problem")
        try:
            score = float(self._dataset.score_answer(answer, item))
        except Exception as error:
            if float(self._dataset.score_answer(item["answer"], item)) != 1.0:
                raise
            return Verdict(0.0, f"the scorer cannot read it: {type(error).__name__}: {error}")
        return Verdict(float(score == 1.0), "" if score == 1.0 else f"the scorer gives {score:g}")

    def wrong_answer(self, problem: Problem) -> str:
        """Return a wrong answer that is very different from the reference, because some scorers accept small
        differences."""
        return perturb_answer(problem.reference, coarse=True)

    def _item(self, index: int) -> Mapping[str, Any]:
        if index not in self._items:
            self._items[index] = self._dataset[index]
        return self._items[index]

    def _problem(self, index: int) -> Problem:
        item = self._item(index)
        if not isinstance(item["answer"], str):
            raise SchoolError(
                f"gym:{self.family} is refused, because problem {index} has no reference answer; choose another dataset"
            )
        problem_id = hashlib.blake2b(item["question"].encode(), digest_size=8).hexdigest()
        messages = (Message("user", item["question"]),)
        return Problem(problem_id, messages, item["answer"], self.family, "reasoning-gym", {"index": index})
