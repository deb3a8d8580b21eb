"""Tasks with a fixed list of problems. By default, one problem in ten is held out for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np

from schoolhouse.config import suggest
from schoolhouse.randomness import numpy_random
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.school.family import is_held_out
from schoolhouse.types import Key, Problem, SchoolError

Item = TypeVar("Item")

Holdout = Literal["tenth", "all", "none"]
"""Problems held out for evaluation. A tenth is chosen by the content of each problem."""


class DatasetTask(Task):
    """A task with a fixed list of problems. Each epoch uses every problem of the train split once, in a new order.

    Subclasses define `all_problems`. Problems with equal ids are always in the same split (train or eval).
    """

    def __init__(self, name: str, seed: int = 0, holdout: str = "tenth") -> None:
        if holdout not in get_args(Holdout):
            raise SchoolError(f"task {name}: option `holdout` is `{holdout}`{suggest(holdout, get_args(Holdout))}")
        self.name, self.seed, self.holdout = name, seed, holdout

    @cached_property
    def all_problems(self) -> list[Problem]:
        """The train problems and the held-out problems, in the order of the source."""
        raise NotImplementedError

    @cached_property
    def _train(self) -> list[Problem]:
        return [problem for problem in self.all_problems if not self.is_held_out(problem)]

    @cached_property
    def _eval(self) -> list[Problem]:
        return list({problem.id: problem for problem in self.all_problems if self.is_held_out(problem)}.values())

    def is_held_out(self, problem: Problem) -> bool:
        """Return True if a problem is in the eval split. The split depends only on the content of the problem."""
        return self.holdout == "all" or (self.holdout == "tenth" and is_held_out(problem.id))

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """Return the problems `step * count` to `(step + 1) * count` of an endless shuffled sequence."""
        if not self._train:
            raise SchoolError(
                f"task {self.name} has no training problems ({len(self._eval)} are held out for evaluation); add "
                "problems, or open the task with `?holdout=none` to train on all problems"
            )
        return shuffled_epochs(self._train, self.seed, "practice", step, count)

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Return distinct held-out problems, in the order of `all_problems`."""
        if not self._eval:
            raise SchoolError(
                f"task {self.name} has no eval problems: none of its {len(self._train)} problems is held out; add "
                "problems, or open a file of eval problems with `?holdout=all`"
            )
        return self._eval[:count]

    def audit_problems(self, limit: int | None = None) -> list[Problem]:
        """Return the first `limit` problems, or all problems if `limit` is None."""
        return self.all_problems[:limit]


def shuffled_epochs(items: Sequence[Item], seed: int, purpose: str, step: int, count: int) -> list[Item]:
    """Return the items `step * count` to `(step + 1) * count` of an endless sequence of epochs, in which each epoch has
    a new order.

    The result depends only on the arguments.
    """
    places = (divmod(at, len(items)) for at in range(step * count, (step + 1) * count))
    return [items[_order(seed, purpose, epoch, len(items))[place]] for epoch, place in places]


@lru_cache(maxsize=8)
def _order(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    return numpy_random(Key(seed, f"order of {purpose}", epoch)).permutation(size)
