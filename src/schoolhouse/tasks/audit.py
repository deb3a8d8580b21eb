"""Check the verifier of a task.

Reference answers must get reward 1. Damaged, empty and wrong answers must get a reward below 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schoolhouse.tasks.base import ProgressFn, Task
from schoolhouse.tasks.grading import grade_all
from schoolhouse.types import Completion, Problem, SchoolError

MAX_SHOWN_FAILURES = 10

FORMS = ("\\boxed{{{}}}", "{}", "#### {}", "<answer>{}</answer>", "The answer is {}.")
"""Forms of a final answer. A user's reward function can expect a form other than the first form."""

_TRIED = 8  # problems whose references are graded in every form


@dataclass(frozen=True)
class Audit:
    """The result of `audit_task`.

    Five fields count problems; each count is at most `num_problems`. If a completion is ungraded (no reward), none of
    the five fields counts the completion. `references_correct` counts problems whose reference gets reward 1.
    `perturbed_rejected` counts problems for which a slightly changed reference gets a reward below 1. `empty_rejected`
    counts problems for which an empty completion gets a reward below 1. `truncated_rejected` counts problems for which
    a truncated reference (inside its \\boxed{...}) gets a reward below 1. `nonsense_rejected` counts problems for which
    a nonsense answer in \\boxed{...} gets a reward below 1.

    `failures` has pairs of a problem id and a text that says what went wrong.
    `seconds` is the wall-clock time of the audit. `form` is the form of the answers, one of `FORMS`.
    """

    num_problems: int
    references_correct: int
    perturbed_rejected: int
    empty_rejected: int
    truncated_rejected: int
    nonsense_rejected: int
    failures: tuple[tuple[str, str], ...]
    seconds: float
    form: str = FORMS[0]

    @property
    def passed(self) -> bool:
        """True if every reference answer got reward 1 and every wrong completion got a reward below 1."""
        return not self.failures

    def __str__(self) -> str:
        lines = [f"graded {self.num_problems:,} problems in {self.seconds:.1f} s"]
        for count, label in (
            (self.references_correct, "references correct"),
            (self.perturbed_rejected, "perturbed answers rejected"),
            (self.empty_rejected, "empty completions rejected"),
            (self.truncated_rejected, "truncated completions rejected"),
            (self.nonsense_rejected, "nonsense answers rejected"),
        ):
            lines.append(f"  {count:,} of {self.num_problems:,} {label}")
        if self.form != FORMS[0]:
            lines.append(
                f"  answers were written as `{self.form.format('ANSWER')}`, the form that the verifier accepts"
            )
        lines += [f"  {problem_id}: {failure}" for problem_id, failure in self.failures[:MAX_SHOWN_FAILURES]]
        if len(self.failures) > MAX_SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - MAX_SHOWN_FAILURES:,} more failures")
        return "\n".join(lines)


_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _NONSENSE = "reference", "perturbed", "empty", "truncated", "nonsense"


def audit_task(task: Task, limit: int | None = None, progress: ProgressFn | None = None) -> Audit:
    """Grade the reference answer and four wrong completions of each problem.

    The reference answer must get reward 1, and the wrong completions must get a reward below 1.

    The argument `limit` is the maximum number of problems (None: no limit). Raises SchoolError if the task has no
    problems.
    """
    started = time.monotonic()
    problems = task.audit_problems(limit)
    if not problems:
        raise SchoolError(f"task {task.name} has no problems to check; give the task at least one problem")
    form = _accepted_form(task, problems[:_TRIED])
    kinds, cases = [], []
    for problem in problems:
        for kind, completion in _completions(task, problem, form):
            kinds.append(kind)
            cases.append((problem, completion))
    passed = dict.fromkeys((_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _NONSENSE), 0)
    failures = []
    verdicts = grade_all(cases, task, None, progress)
    for kind, (problem, completion), verdict in zip(kinds, cases, verdicts, strict=True):
        correct = verdict.reward == 1.0
        if verdict.reward is not None and correct == (kind == _REFERENCE):
            passed[kind] += 1
            continue
        result = "could not be graded" if verdict.reward is None else f"got reward {verdict.reward:g}"
        reason = f": {verdict.reason}" if verdict.reason else ""
        failures.append((problem.id, f"{kind} {completion.answer!r} {result}{reason}"))
    return Audit(len(problems), *passed.values(), tuple(failures), time.monotonic() - started, form)


def _accepted_form(task: Task, problems: Sequence[Problem]) -> str:
    """Return the form of an answer in which most references get reward 1, or `FORMS[0]` if no reference does."""
    best, most = FORMS[0], 0
    for form in FORMS:
        cases = [(problem, Completion(None, form.format(problem.reference))) for problem in problems]
        correct = sum(verdict.reward == 1.0 for verdict in grade_all(cases, task))
        if correct > most:
            best, most = form, correct
        if most == len(problems):
            break
    return best


def _completions(task: Task, problem: Problem, form: str) -> Iterable[tuple[str, Completion]]:
    whole = form.format(problem.reference)
    cut = whole[:-1] if form == FORMS[0] else whole[: len(whole) // 2]
    yield _REFERENCE, Completion(None, whole)
    yield _PERTURBED, Completion(None, form.format(task.wrong_answer(problem)))
    yield _EMPTY, Completion(None, "")
    yield _TRUNCATED, Completion(None, cut, complete=False)
    yield _NONSENSE, Completion(None, form.format("zzz"))
