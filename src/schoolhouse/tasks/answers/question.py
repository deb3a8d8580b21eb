"""Refuse a candidate that is only copied from the question. A candidate that is written like the reference is right."""

from __future__ import annotations

import re
from functools import lru_cache

from schoolhouse.tasks.answers.formula import ordered, parse_formula
from schoolhouse.tasks.answers.spelling import spelling
from schoolhouse.tasks.answers.structure import Amount, Answer, Parts, Relation, Text

_FORMULAS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_LOOSE = re.compile(r"[\s{}()]|\\(?:cdot|times)(?![a-zA-Z])|\*")


def copied(candidate: Answer, reference: Answer, question: str) -> bool:
    """Return True if an answer that equals the reference is only copied from the question."""
    if not question or _same(candidate, reference):
        return False
    if isinstance(candidate, Relation) and candidate.name:
        candidate = candidate.members[-1]
    text = _loose(candidate.raw)
    if text and _occurs(text, _loose(question)):
        return True
    trees = _trees(question)
    return isinstance(candidate, Amount) and candidate.tree is not None and ordered(candidate.tree) in trees


def _same(candidate: Answer, reference: Answer) -> bool:
    """Return True if an answer is written like the reference. Units, names, brackets and order can differ."""
    if candidate.raw and spelling(candidate.raw) == spelling(reference.raw):
        return True
    if isinstance(reference, Text):
        return True
    if isinstance(candidate, Relation) and candidate.name:
        return _same(candidate.members[-1], reference)
    if isinstance(reference, Relation) and reference.name:
        return any(_same(candidate, member) for member in reference.members[1:])
    if isinstance(candidate, Amount) and isinstance(reference, Amount):
        if candidate.number and reference.number:
            return candidate.number.form == reference.number.form
        return bool(candidate.tree and reference.tree) and ordered(candidate.tree) == ordered(reference.tree)
    if isinstance(candidate, Parts) and isinstance(reference, Parts):
        return all(any(_same(one, other) for other in reference.members) for one in candidate.members)
    return False


@lru_cache(maxsize=1024)
def _loose(text: str) -> str:
    return _LOOSE.sub("", spelling(text))


def _occurs(text: str, question: str) -> bool:
    """Return True if a text occurs in a question as a whole, and not only as a part of a longer number, word or
    power."""
    at = question.find(text)
    while at >= 0:
        before, after = question[at - 1 : at], question[at + len(text) : at + len(text) + 1]
        inside = (text[0].isalnum() and (before.isdigit() or before == ".")) or (
            text[-1].isalnum() and (after.isdigit() or (after in ("^", "_", "!") and after != ""))
        )
        if not inside:
            return True
        at = question.find(text, at + 1)
    return False


@lru_cache(maxsize=256)
def _trees(question: str) -> frozenset[str]:
    """Return the formulas of a question, and both sides of each equation."""
    found = set()
    for match in _FORMULAS.finditer(question):
        formula = next(filter(None, match.groups()))
        for piece in (formula, *re.split(r"=|,", formula)):
            tree = parse_formula(piece)
            if tree is not None:
                found.add(ordered(tree))
    return frozenset(found)
