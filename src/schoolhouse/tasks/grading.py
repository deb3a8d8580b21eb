"""Grade completions in the main process if the task allows it, or else in worker processes with a timeout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean

from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.runs.progress import phase
from schoolhouse.tasks.base import Case, ProgressFn, Task, grade_in_process
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Group, Rollout, SchoolError, Verdict

STOP_AFTER = 16
"""Grading stops with an error if this many rollouts in a row could not be graded, and if no rollout of the call could
be graded."""

_POOL, _SETTINGS, _TRACES, _IN_A_ROW = "_worker_pool", "_worker_settings", "_traces", "_ungraded_in_a_row"


def open_graded_task(spec: str, seed: int, settings: WorkerSettings) -> Task:
    """Open a task (`open_task`) whose worker processes have the given settings."""
    task = open_task(spec, seed)
    task.__dict__[_SETTINGS] = settings  # setting an attribute would fail for a frozen dataclass
    return task


def grade_rollouts(
    rollouts: Sequence[Rollout], task: Task, parse: Callable[[Rollout], Completion], pool: WorkerPool | None = None
) -> list[Group]:
    """Grade rollouts, and return groups with their verdicts. Consecutive rollouts of one problem form one group.

    parse  a function that returns the last completion of a rollout (`Conversation.parse_completion`).
    pool   worker processes that are used instead of the task's own worker processes.
    If a verifier raises an exception, crashes or exceeds its timeout, the verdict has a reason but no reward. Raises
    SchoolError if no rollout can be graded any more (STOP_AFTER). The message has the most frequent reason.
    """
    cases = [(one.problem, replace(parse(one), token_ids=one.last_turn())) for one in rollouts]
    verdicts = grade_all(cases, task, pool)
    _stop_if_nothing_was_graded(task, verdicts, pool)
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
    verdicts, traces = [], task.__dict__.setdefault(_TRACES, {})
    for verdict, trace in grade_in_process(task, cases):
        verdicts.append(verdict)
        if trace:
            traces[verdict.reason] = trace
        progress(len(verdicts), len(cases))
    return verdicts


def worker_pool(task: Task) -> WorkerPool:
    """Return the worker processes of a task. The processes start when the first case arrives, and are kept for later
    calls with the same task."""
    if _POOL not in task.__dict__:  # not an attribute: a task may be a frozen dataclass
        task.__dict__[_POOL] = pool_with(task, task.__dict__.get(_SETTINGS) or WorkerSettings())
    return task.__dict__[_POOL]


def pool_with(task: Task, c: WorkerSettings) -> WorkerPool:
    """Return new worker processes for a task, with the settings of a config."""
    return WorkerPool(task, c.workers, c.timeout, round(c.memory_limit * 2**30), c.load_timeout)


def timing(task: Task) -> dict[str, float]:
    """Return the mean and the maximum of the seconds per completion in the last call of the worker processes."""
    seconds = task.__dict__[_POOL].seconds if _POOL in task.__dict__ else []
    return {"mean": fmean(seconds), "slowest": max(seconds)} if seconds else {}


def _stop_if_nothing_was_graded(task: Task, verdicts: Sequence[Verdict], pool: WorkerPool | None) -> None:
    """Raise SchoolError if at least the last STOP_AFTER rollouts could not be graded."""
    state = task.__dict__
    if any(verdict.reward is not None for verdict in verdicts):
        state[_IN_A_ROW] = 0
        return
    state[_IN_A_ROW] = state.get(_IN_A_ROW, 0) + len(verdicts)
    if state[_IN_A_ROW] < STOP_AFTER:
        return
    pool = pool or state.get(_POOL)
    traces: Mapping[str, str] = pool.traces if pool else state.get(_TRACES, {})
    same: Counter[str] = Counter(re.sub(r"( \([^()]*\))+$", "", verdict.reason) for verdict in verdicts)
    cause, count = same.most_common(1)[0]
    example = next(verdict.reason for verdict in verdicts if verdict.reason.startswith(cause))
    trace = f"\n{traces[example]}" if example in traces else ""
    raise SchoolError(
        f"task {task.name}: none of the last {state[_IN_A_ROW]} completions could be graded. The most frequent reason "
        f"({count} of {len(verdicts)}): {example}{trace}\n"
        "correct the verifier or the data; `school task TASK --check` shows the grades of the references"
    )
