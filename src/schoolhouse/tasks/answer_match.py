"""Grade the final answer that a completion marks. The parts are in answers/."""

from __future__ import annotations

from collections.abc import Sequence

from schoolhouse.tasks.answers.compare import Policy
from schoolhouse.tasks.answers.extraction import SEVERAL, Extraction, extract_answer, extract_list
from schoolhouse.tasks.answers.grade import compare_answers, read_reference
from schoolhouse.types import Completion, Verdict


def exactly_comparable(reference: str) -> bool:
    """Whether answers can be compared with this reference quickly and in any process: no formula is involved."""
    return read_reference(reference).comparison in ("number", "text", "choice")


def answer_match(
    completion: Completion,
    reference: str | Sequence[str],
    question: str = "",
    extraction: Extraction = "boxed",
    policy: Policy | None = None,
) -> Verdict:
    """Reward 1 if the marked final answer equals the reference (or one of several), else 0 and the reason.

    question  a candidate that stands in it is no answer, unless it is the reference
    """
    answer, reason = extract_answer(completion, extraction)
    if reason == SEVERAL:
        answer = extract_list(completion)
    return Verdict(0.0, reason) if answer is None else compare_answers(answer, reference, question, policy)
