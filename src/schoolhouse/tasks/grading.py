"""Grade what a policy wrote: in process for a trusted task, else in worker processes with a hard wall clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean

from schoolhouse.tasks.base import Case, Progress, Task, grade_one
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Group, Rollout, Verdict

_POOL = "_worker_pool"


def grade(
    rollouts: Sequence[Rollout], task: Task, read: Callable[[Rollout], Completion], pool: WorkerPool | None = None
) -> list[Group]:
    """Verdicts on rollouts, in order; consecutive rollouts of the same step and problem are one group.

    read  what the policy said last, from a rollout (`Conversation.read`)
    pool  worker processes to use instead of the task's own
    A verifier that raises, dies or runs over its clock gives a verdict without a score, and the reason.
    """
    verdicts = grade_all([(rollout.problem, read(rollout)) for rollout in rollouts], task, pool)
    groups = []
    judged = zip(rollouts, verdicts, strict=True)
    for _, members in groupby(judged, key=lambda m: (m[0].key.step, m[0].key.problem, m[0].problem.id)):
        same, given = zip(*members, strict=True)
        groups.append(Group(same[0].problem, same, given))
    return groups


def grade_all(
    cases: Sequence[Case], task: Task, pool: WorkerPool | None = None, progress: Progress | None = None
) -> list[Verdict]:
    """One verdict for each (problem, reply), in order: in process for a trusted task, else by worker processes."""
    if pool is None and not task.in_process:
        pool = worker_pool(task)
    if pool is not None:
        return pool.grade_all(cases, progress)
    verdicts = []
    for problem, reply in cases:
        verdicts.append(grade_one(task, problem, reply))
        if progress:
            progress(len(verdicts), len(cases))
    return verdicts


def worker_pool(task: Task) -> WorkerPool:
    """The worker processes that grade for a task. They start with its first answer and are kept with the task."""
    if _POOL not in task.__dict__:  # not an attribute: a task may be a frozen dataclass
        task.__dict__[_POOL] = WorkerPool(task)
    return task.__dict__[_POOL]


def timing(task: Task) -> dict[str, float]:
    """Seconds of the last answers that worker processes graded: mean and slowest; {} without worker processes."""
    seconds = task.__dict__[_POOL].seconds if _POOL in task.__dict__ else []
    return {"mean": fmean(seconds), "slowest": max(seconds)} if seconds else {}
