"""Tasks with an end: a list of problems, one in ten of them kept for the exam."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np

from schoolhouse.config import suggest
from schoolhouse.randomness import numpy_random
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school.family import held_out
from schoolhouse.types import Key, Problem, SchoolError

Item = TypeVar("Item")

Share = Literal["tenth", "all", "none"]
"""What of a task is kept for the exam; a tenth is chosen by the content of each instance."""


class DatasetTask(Task):
    """A list of problems. Practice goes through the train split epoch by epoch, each in a new order.

    Subclasses give `all_problems`. An instance that stands in the list twice is on one side of the split only.
    """

    def __init__(self, name: str, seed: int = 0, holdout: str = "tenth") -> None:
        if holdout not in get_args(Share):
            raise SchoolError(f"task {name}: option `exam` is `{holdout}`{suggest(holdout, get_args(Share))}")
        self.name, self.seed, self.share = name, seed, holdout

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Every problem, in order."""
        raise NotImplementedError

    @cached_property
    def _train(self) -> list[Problem]:
        return [problem for problem in self.all_problems if not self.is_held_out(problem)]

    @cached_property
    def _exam(self) -> list[Problem]:
        return list({problem.id: problem for problem in self.all_problems if self.is_held_out(problem)}.values())

    def is_held_out(self, problem: Problem) -> bool:
        """Whether a problem is kept for the exam: a property of its content, not of its place or the seed."""
        return self.share == "all" or (self.share == "tenth" and held_out(problem.id))

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """The problems `step * count` to `(step + 1) * count` of an endless shuffled sequence."""
        if not self._train:
            raise SchoolError(
                f"task {self.name}: no problem is left for practice ({len(self._exam)} are kept for the exam); add "
                "problems, or open it with ?holdout=none to practise on all"
            )
        return in_turn(self._train, self.seed, "practice", step, count)

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Distinct held-out problems in the order of the list."""
        if not self._exam:
            raise SchoolError(
                f"task {self.name}: none of its {len(self._train)} problems is kept for the exam; add problems, "
                "or open others with ?holdout=all"
            )
        return self._exam[:count]

    def problems(self, limit: int | None = None) -> list[Problem]:
        """All of it, in order."""
        return self.all_problems[:limit]


def in_turn(items: Sequence[Item], seed: int, purpose: str, step: int, count: int) -> list[Item]:
    """Items `step * count` to `(step + 1) * count` of the sequence that goes through all of them again and again, each
    time in another order: a pure function of its arguments."""
    places = (divmod(at, len(items)) for at in range(step * count, (step + 1) * count))
    return [items[_order(seed, purpose, epoch, len(items))[place]] for epoch, place in places]


@lru_cache(maxsize=8)
def _order(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    return numpy_random(Key(seed, f"order of {purpose}", epoch)).permutation(size)
