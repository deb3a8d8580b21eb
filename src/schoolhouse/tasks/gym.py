"""Families of reasoning-gym (`gym:NAME`), with its scoring made exact.

Its scorers give part marks to any text that contains the answer: the marked final answer is taken out first, and only
a score of exactly 1 counts. Families that cannot be judged or repeated are refused by name.
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
from schoolhouse.tasks.answer_match import extract, perturb
from schoolhouse.tasks.dataset_task import DatasetTask
from schoolhouse.types import Completion, Message, Problem, SchoolError, Verdict

SIZE = 500
"""Problems of a family, unless `size` says otherwise. They are made at first use; some families need a second each."""

DATA_SEED = 0
"""Fixed, so that runs with different seeds practise on the same problems (in another order) and sit the same exam."""

NO_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Families that give no reference answer, so that nobody can check their scorer."""

HASH_DEPENDENT = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"})
"""Families whose problems depend on Python's string hashes, which differ from process to process."""


def open_gym(family: str, seed: int = 0, **options: str) -> Gym:
    """A family by name. Options: `size`, `holdout=tenth|all|none`, and those of the family's config, values as in JSON.

    Raises SchoolError when the extra is not installed, and naming what is unknown or refused.
    """
    try:
        factory: Any = importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise SchoolError(
            f"gym:{family} needs reasoning-gym: pip install 'schoolhouse[gym]' (it needs a C compiler)"
        ) from error
    if family not in factory.DATASETS:
        raise SchoolError(f"gym: unknown family `{family}`{suggest(family, sorted(factory.DATASETS))}")
    if family in NO_ANSWER:
        raise SchoolError(f"gym:{family} is refused: it gives no reference answers, so its scores cannot be checked")
    if family in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise SchoolError(
            f"gym:{family} is refused: its problems differ from process to process; start with PYTHONHASHSEED=0 set in "
            "the environment to use it"
        )
    exam = options.pop("holdout", "tenth")
    known = [field.name for field in fields(factory.DATASETS[family][1]) if field.name != "seed"]
    for option in options:
        if option not in known:
            raise SchoolError(f"gym:{family}: unknown option `{option}`{suggest(option, known)}")
    settings = {"size": SIZE, **{name: _value(text) for name, text in options.items()}}
    try:
        dataset = factory.create_dataset(family, seed=DATA_SEED, **settings)
    except Exception as error:
        raise SchoolError(f"gym:{family}: {error or type(error).__name__} (options: {settings})") from error
    return Gym(family, dataset, seed, exam)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Gym(DatasetTask):
    """The problems of one reasoning-gym dataset, judged by its scorer."""

    def __init__(self, family: str, dataset: Any, seed: int = 0, holdout: str = "tenth") -> None:
        super().__init__(f"gym:{family}", seed, holdout)
        self.family, self._dataset = family, dataset
        self._items: dict[int, Mapping[str, Any]] = {}

    @cached_property
    def all_problems(self) -> list[Problem]:
        """All of them, made now."""
        return [self._problem(index) for index in range(len(self._dataset))]

    def problems(self, limit: int | None = None) -> list[Problem]:
        """The first ones, without making the others."""
        size = len(self._dataset)
        return [self._problem(index) for index in range(size if limit is None else min(limit, size))]

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        """1 if the family's scorer gives the marked final answer exactly 1, else 0.

        A scorer that raises on an answer while it accepts the reference says that the answer makes no sense: 0.
        """
        answer, reason = extract(reply)
        if answer is None:
            return Verdict(0.0, reason)
        item = self._item(int(str(problem.info["index"])))
        if item["question"] != problem.messages[-1].content:
            return Verdict(None, f"gym:{self.family} made another problem in this process: it cannot be repeated")
        try:
            score = float(self._dataset.score_answer(answer, item))
        except Exception as error:
            if float(self._dataset.score_answer(item["answer"], item)) != 1.0:
                raise
            return Verdict(0.0, f"the scorer cannot read it: {type(error).__name__}: {error}")
        return Verdict(float(score == 1.0), "" if score == 1.0 else f"the scorer gives {score:g}")

    def wrong_answer(self, problem: Problem) -> str:
        """Off by much: some families allow for rounding."""
        return perturb(problem.reference, coarse=True)

    def _item(self, index: int) -> Mapping[str, Any]:
        if index not in self._items:
            self._items[index] = self._dataset[index]
        return self._items[index]

    def _problem(self, index: int) -> Problem:
        item = self._item(index)
        if not isinstance(item["answer"], str):
            raise SchoolError(f"gym:{self.family} is refused: its problem {index} has no reference answer")
        name = hashlib.blake2b(item["question"].encode(), digest_size=8).hexdigest()
        asked = (Message("user", item["question"]),)
        return Problem(name, asked, item["answer"], self.family, "reasoning-gym", {"index": index})
