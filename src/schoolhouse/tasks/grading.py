"""Grade completions in the main process if the task allows it, or else in worker processes with a timeout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean

from schoolhouse.runs.progress import phase
from schoolhouse.tasks.base import Case, ProgressFn, Task, grade_one
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Group, Rollout, Verdict

_POOL = "_worker_pool"


def grade_rollouts(
    rollouts: Sequence[Rollout], task: Task, parse: Callable[[Rollout], Completion], pool: WorkerPool | None = None
) -> list[Group]:
    """Grade rollouts, and return groups with their verdicts. Consecutive rollouts of one problem form one group.

    parse  a function that returns the last completion of a rollout (`Conversation.parse_completion`).
    pool   worker processes that are used instead of the task's own worker processes.
    If a verifier raises an exception, crashes or exceeds its timeout, the verdict has a reason but no reward.
    """
    verdicts = grade_all([(rollout.problem, parse(rollout)) for rollout in rollouts], task, pool)
    pairs = zip(rollouts, verdicts, strict=True)
    groups = []
    for _, members in groupby(pairs, key=lambda pair: (pair[0].key.step, pair[0].key.problem, pair[0].problem.id)):
        group_rollouts, group_verdicts = zip(*members, strict=True)
        groups.append(Group(group_rollouts[0].problem, group_rollouts, group_verdicts))
    return groups


def grade_all(
    cases: Sequence[Case], task: Task, pool: WorkerPool | None = None, progress: ProgressFn | None = None
) -> list[Verdict]:
    """Return one verdict for each pair of a problem and a completion, in order."""
    if progress is None:
        with phase("grading", len(cases), unit="answer") as running:
            return grade_all(cases, task, pool, lambda done, total: running(done - running.done))
    if pool is None and not task.in_process:
        pool = worker_pool(task)
    if pool is not None:
        return pool.grade_all(cases, progress)
    verdicts = []
    for problem, completion in cases:
        verdicts.append(grade_one(task, problem, completion))
        progress(len(verdicts), len(cases))
    return verdicts


def worker_pool(task: Task) -> WorkerPool:
    """Return the worker processes of a task. The processes start when the first case arrives, and are kept for later
    calls with the same task."""
    if _POOL not in task.__dict__:  # not an attribute: a task may be a frozen dataclass
        task.__dict__[_POOL] = WorkerPool(task)
    return task.__dict__[_POOL]


def timing(task: Task) -> dict[str, float]:
    """Return the mean and the maximum of the seconds per completion in the last call of the worker processes."""
    seconds = task.__dict__[_POOL].seconds if _POOL in task.__dict__ else []
    return {"mean": fmean(seconds), "slowest": max(seconds)} if seconds else {}
