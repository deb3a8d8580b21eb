"""Grade the final answer that a completion marks. The folder answers/ has the rules of the comparison."""

from __future__ import annotations

from collections.abc import Sequence

from schoolhouse.tasks.answers.compare import Policy
from schoolhouse.tasks.answers.extraction import SEVERAL, Extraction, extract_answer, extract_list
from schoolhouse.tasks.answers.grade import compare_answers, read_reference
from schoolhouse.types import Completion, Verdict


def exactly_comparable(reference: str) -> bool:
    """Return True if answers can be compared with this reference quickly and in any process.

    Formulas are compared in worker processes, because the comparison of a bad formula can take a long time.
    """
    return read_reference(reference).comparison in ("number", "text", "choice")


def answer_match(
    completion: Completion,
    reference: str | Sequence[str],
    question: str = "",
    extraction: Extraction = "boxed",
    policy: Policy | None = None,
) -> Verdict:
    """Return reward 1 if the marked final answer equals at least one of the references, else reward 0 and the reason.

    A final answer that occurs in the text `question` is wrong, unless the answer is written like the reference.
    """
    answer, reason = extract_answer(completion, extraction)
    if reason == SEVERAL:
        answer = extract_list(completion)
    return Verdict(0.0, reason) if answer is None else compare_answers(answer, reference, question, policy)
