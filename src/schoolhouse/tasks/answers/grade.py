"""Grade a final answer by comparing it with its reference. The page docs/grading.md has the rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from schoolhouse.tasks.answers.choices import Choice, choice_fault, read_choice
from schoolhouse.tasks.answers.compare import Policy, fault, text_fault
from schoolhouse.tasks.answers.expressions import expression_fault, needs_math_verify
from schoolhouse.tasks.answers.formula import MAX_FORMULA_CHARS
from schoolhouse.tasks.answers.numbers import MAX_NUMBER_CHARS
from schoolhouse.tasks.answers.question import copied
from schoolhouse.tasks.answers.structure import Amount, Answer, Parts, Relation, Text, read_answer
from schoolhouse.types import Verdict

Comparison = Literal["choice", "number", "text", "formula", "math-verify"]
"""How answers are compared with a reference."""

_RIGHT, _WRONG = Verdict(1.0), Verdict(0.0, "another number")
_PLAIN = re.compile(
    r"(?:[a-zA-Z] ?= ?)?\\?\$?(-?)\$?([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.([0-9]{1,30}))?\$?\.?"
)
"""Whole and decimal numbers. These numbers are compared first, because most answers are such numbers."""


class Reference(NamedTuple):
    """The structure of a reference, the kind of comparison, and the choice if the reference is a choice."""

    answer: Answer
    comparison: Comparison
    choice: Choice | None


@lru_cache(maxsize=4096)
def read_reference(reference: str) -> Reference:
    """Read a reference. A reference that cannot be read as mathematics is compared by its spelling."""
    choice = read_choice(reference)
    answer = read_answer(reference)
    if choice and (not choice.text or choice.framed):
        return Reference(answer, "choice", choice)
    if isinstance(answer, Amount) and answer.number:
        return Reference(answer, "number", None)
    if _has_text(answer):
        if needs_math_verify(reference):
            return Reference(Text(answer.raw), "math-verify", None)
        return Reference(answer, "text", None)
    return Reference(answer, "formula", None)


def _has_text(answer: Answer) -> bool:
    if isinstance(answer, (Parts, Relation)):
        members = answer.members[1:] if isinstance(answer, Relation) and answer.name else answer.members
        return any(_has_text(member) for member in members)
    return isinstance(answer, Text)


def compare_answers(
    candidate: str, references: str | Sequence[str], question: str = "", policy: Policy | None = None
) -> Verdict:
    """Return reward 1 if a final answer equals at least one of the references, else reward 0 and the reason.

    A candidate that occurs in the text `question` is wrong, unless the candidate is written like the reference. Raises
    RuntimeError in a main process if math-verify must compare an answer with the reference.
    """
    if isinstance(references, str):
        return _compare(candidate, references, question, policy or Policy())
    verdicts = [_compare(candidate, reference, question, policy or Policy()) for reference in references]
    if not verdicts:
        raise ValueError("the list of references is empty; give at least one reference")
    return next((verdict for verdict in verdicts if verdict.reward == 1.0), verdicts[0])


def _compare(candidate: str, reference: str, question: str, policy: Policy) -> Verdict:
    if "=" not in reference and (plain := _plain_number(reference)) and (number := _plain_number(candidate)):
        return _RIGHT if number == plain else _WRONG
    expected = read_reference(reference)
    limit = MAX_NUMBER_CHARS if expected.comparison == "number" else MAX_FORMULA_CHARS
    if len(candidate) > max(limit, 2 * len(reference)):
        reason = "not a bare number" if expected.comparison == "number" else f"longer than {limit} characters"
        return Verdict(0.0, reason)
    if expected.choice and (reason := choice_fault(candidate, expected.choice)) is not None:
        return Verdict(0.0, reason) if reason else _RIGHT
    if expected.choice and expected.choice.text and not text_fault(candidate, expected.choice.text):
        return _RIGHT
    reason, answer = _fault(candidate, reference, expected, policy)
    if reason:
        return Verdict(0.0, reason)
    if question and copied(answer, expected.answer, question):
        return Verdict(0.0, "restates the problem: it stands in the question")
    return _RIGHT


@lru_cache(maxsize=4096)
def _plain_number(text: str) -> tuple[str, str, str] | None:
    match = _PLAIN.fullmatch(text)
    if not match:
        return None
    sign, whole, decimals = match.groups("")
    whole, decimals = whole.replace(",", "").lstrip("0"), decimals.rstrip("0")
    return sign if whole or decimals else "", whole, decimals


def _fault(candidate: str, reference: str, expected: Reference, policy: Policy) -> tuple[str, Answer]:
    if expected.comparison == "text" and isinstance(expected.answer, Text):
        return text_fault(candidate, reference), Text(candidate)
    unit = expected.answer.unit if isinstance(expected.answer, Amount) else ""
    answer = read_answer(candidate, comma=expected.comparison == "number", letters=len(unit.partition("^")[0]) == 1)
    reason = fault(answer, expected.answer, policy)
    if reason and expected.comparison == "math-verify":
        reason = expression_fault(candidate, reference)
    return reason, answer
