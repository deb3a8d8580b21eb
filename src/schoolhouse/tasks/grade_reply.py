"""Grade one reply with `schoolhouse.grade(reply, reference)`, or the pairs of a file with `school grade`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chats import shown
from schoolhouse.tasks.answers.expressions import load_math_verify
from schoolhouse.tasks.answers.grade import read_reference
from schoolhouse.tasks.answers.options import Grading, pop_grading
from schoolhouse.tasks.base import ProgressFn, Task
from schoolhouse.tasks.grading import pool_with
from schoolhouse.tasks.row_source import read_rows
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Message, Problem, SchoolError, Verdict


def grade(
    reply: str,
    reference: str | Sequence[str],
    *,
    question: str = "",
    extract: str = "auto",
    units: str = "optional",
    grader: str = "ours",
) -> Verdict:
    r"""Return reward 1 if the final answer of a reply equals one of the references, else reward 0 and the reason.

    The text `reply` is the text that the model wrote. A thought in <think>...</think> does not count. A final answer
    that occurs in the text `question` is wrong, unless the answer is written like the reference.

    The option `extract` says how the final answer is marked: `boxed` (\boxed{} or <answer>), `hash` (####),
    `answer_colon` (Answer: X), `last_number`, `whole` (the whole text) or `auto` (the first mark that the reply has).
    The option `units` says whether a unit can be left out (`optional`), must be written (`strict`), or can also be
    added (`lenient`). The option `grader` selects our rules (`ours`) or the rules of an installed package (`hf`,
    `verl`, `minerva`). Raises SchoolError for an unknown option. A reference such as an
    integral is compared in a worker process.
    """
    grading = pop_grading({"extract": extract, "units": units, "grader": grader}, "grade")
    problem, completion = _case(reply, reference, question)
    if grading.grader == "ours" and not _needs_worker(problem):
        return grading.grade(problem, completion)
    return _pool(grading).grade_all([(problem, completion)])[0]


class Pair(NamedTuple):
    """A reference, a candidate, and the expected reward. The expected reward is None if the file does not give it."""

    place: str
    reference: str | tuple[str, ...]
    candidate: str
    question: str
    expected: float | None


class PairTask(Task):
    """A task that grades pairs. The task has no problems."""

    name = "pairs"

    def __init__(self, grading: Grading) -> None:
        self.grading = grading

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict of one pair."""
        return self.grading.grade(problem, completion)

    def warm_up(self) -> None:
        """Import math-verify."""
        load_math_verify()


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of a data file. Raises SchoolError for a mistake in the file; the
    message names the file, the line and the mistake."""
    needs = "`reference` and `candidate`"
    pairs = [_pair(row.place, row.values) for row in read_rows(str(path), needs)]
    if not pairs:
        raise SchoolError(f"{path} has no pairs; add a row with {needs}")
    return pairs


def _pair(place: str, row: Mapping[str, Any]) -> Pair:
    reference, candidate = row.get("reference"), row.get("candidate")
    references = reference if isinstance(reference, list) else [reference]
    if not references or not all(isinstance(each, str) for each in references):
        raise SchoolError(f"{place}: `reference` is {shown(reference, 60)}; it must be text, or a list of texts")
    if not isinstance(candidate, str):
        raise SchoolError(f"{place}: `candidate` is {shown(candidate, 60)}; it must be text")
    question, expected = row.get("question") or "", row.get("expected")
    if not isinstance(question, str):
        raise SchoolError(f"{place}: `question` is {shown(question, 60)}; it must be text")
    if expected is not None and not isinstance(expected, (int, float)):
        raise SchoolError(f"{place}: `expected` is {shown(expected, 60)}; it must be 1 or 0")
    accepted = reference if isinstance(reference, str) else tuple(map(str, references))
    return Pair(place, accepted, candidate, question, None if expected is None else float(expected))


def grade_pairs(
    pairs: Sequence[Pair],
    grading: Grading,
    progress: ProgressFn | None = None,
    settings: WorkerSettings | None = None,
) -> list[Verdict]:
    """Grade the pairs in worker processes with a timeout. Returns one verdict for each pair, in order."""
    cases = [_case(pair.candidate, pair.reference, pair.question) for pair in pairs]
    with pool_with(PairTask(grading), settings or WorkerSettings()) as pool:
        return pool.grade_all(cases, progress)


def _case(reply: str, reference: str | Sequence[str], question: str) -> tuple[Problem, Completion]:
    references = (reference,) if isinstance(reference, str) else tuple(reference)
    if not references:
        raise SchoolError("grade: the list of references is empty; give at least one reference")
    messages = (Message("user", question),) if question else ()
    thought, end, answer = reply.rpartition("</think>")
    if not end:
        thought, start, _ = reply.partition("<think>")
        answer = thought if start else reply
    problem = Problem("pair", messages, references[0], aliases=references[1:])
    return problem, Completion(thought if end else None, answer)


def _needs_worker(problem: Problem) -> bool:
    references = (problem.reference, *problem.aliases)
    return any(read_reference(reference).comparison == "math-verify" for reference in references)


@lru_cache(maxsize=4)
def _pool(grading: Grading) -> WorkerPool:
    return WorkerPool(PairTask(grading), num_workers=1)
