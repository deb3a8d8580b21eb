"""Check a task against itself: its references must pass, damaged and empty answers must not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schoolhouse.tasks.base import Progress, Task
from schoolhouse.tasks.grading import grade_all
from schoolhouse.types import Completion, Problem, SchoolError

if TYPE_CHECKING:
    pass

SHOWN_FAILURES = 10


@dataclass(frozen=True)
class Audit:
    """How a task judges its own references, and answers that must not pass for them.

    judged           problems
    references_right references that scored 1
    perturbed_wrong  references changed a little,
    empty_wrong      empty replies,
    truncated_wrong  references cut off inside their marker, and
    garbage_wrong    marked nonsense that got a score, and less than 1
    failures         (problem id, what went wrong)
    seconds          wall clock
    """

    judged: int
    references_right: int
    perturbed_wrong: int
    empty_wrong: int
    truncated_wrong: int
    garbage_wrong: int
    failures: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Every reference was right and nothing else was."""
        return not self.failures

    def __str__(self) -> str:
        lines = [f"judged {self.judged:,} problems in {self.seconds:.1f} s"]
        for count, what in (
            (self.references_right, "references right"),
            (self.perturbed_wrong, "perturbed answers wrong"),
            (self.empty_wrong, "empty replies wrong"),
            (self.truncated_wrong, "truncated replies wrong"),
            (self.garbage_wrong, "nonsense answers wrong"),
        ):
            lines.append(f"  {count:,} of {self.judged:,} {what}")
        lines += [f"  {name}: {what}" for name, what in self.failures[:SHOWN_FAILURES]]
        if len(self.failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - SHOWN_FAILURES:,} more failures")
        return "\n".join(lines)


_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _GARBAGE = "reference", "perturbed", "empty", "truncated", "nonsense"


def audit_task(task: Task, limit: int | None = None, progress: Progress | None = None) -> Audit:
    """Judge each problem's reference, which must score 1, and four replies that must score less.

    `limit` bounds the problems (None: all of a task with an end). Raises SchoolError for a task without problems.
    """
    started = time.monotonic()
    problems = task.problems(limit)
    if not problems:
        raise SchoolError(f"task {task.name} has no problems to check")
    kinds, cases = [], []
    for problem in problems:
        for kind, reply in _trials(task, problem):
            kinds.append(kind)
            cases.append((problem, reply))
    passed = dict.fromkeys((_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _GARBAGE), 0)
    failures = []
    for kind, (problem, reply), verdict in zip(kinds, cases, grade_all(cases, task, None, progress), strict=True):
        right = verdict.reward == 1.0
        if verdict.reward is not None and right == (kind == _REFERENCE):
            passed[kind] += 1
            continue
        result = "could not be judged" if verdict.reward is None else f"scored {verdict.reward:g}"
        reason = f": {verdict.reason}" if verdict.reason else ""
        failures.append((problem.id, f"{kind} {reply.answer!r} {result}{reason}"))
    return Audit(len(problems), *passed.values(), tuple(failures), time.monotonic() - started)


def _trials(task: Task, problem: Problem) -> Iterable[tuple[str, Completion]]:
    marked = f"\\boxed{{{problem.reference}}}"
    yield _REFERENCE, Completion(None, marked)
    yield _PERTURBED, Completion(None, f"\\boxed{{{task.wrong_answer(problem)}}}")
    yield _EMPTY, Completion(None, "")
    yield _TRUNCATED, Completion(None, marked[:-1], complete=False)
    yield _GARBAGE, Completion(None, "\\boxed{zzz}")
