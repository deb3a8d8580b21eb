"""Compare a candidate with a reference.

Text is compared by its spelling, numbers are compared exactly, and formulas are compared by their values. For lists,
the brackets decide whether the order of the values matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from schoolhouse.tasks.answers.evaluate import equal_formulas, nearly_equal, proportional
from schoolhouse.tasks.answers.finished import unfinished
from schoolhouse.tasks.answers.formula import Tree, negated, parse_formula
from schoolhouse.tasks.answers.numbers import number_fault
from schoolhouse.tasks.answers.spelling import plain_words, spelling, words
from schoolhouse.tasks.answers.structure import Amount, Answer, Parts, Relation, Text, name_of
from schoolhouse.tasks.answers.units import Units, unit_fault


class Policy(NamedTuple):
    """The rules that decide which answers are equal."""

    units: Units = "optional"


def fault(candidate: Answer, reference: Answer, policy: Policy) -> str:
    """Return the reason why a candidate is not the reference, or an empty text if the candidate is the reference."""
    if isinstance(reference, Amount) and reference.number and isinstance(candidate, Amount):
        reason = _amount_fault(candidate, reference, policy)
        return reason if not reason.startswith("restates") or spelling(candidate.raw) != spelling(reference.raw) else ""
    if candidate.raw and spelling(candidate.raw) == spelling(reference.raw):
        return ""
    if isinstance(reference, Text):
        return text_fault(candidate.raw, reference.raw)
    if isinstance(reference, Relation):
        return _relation_fault(candidate, reference, policy)
    if isinstance(candidate, Relation):
        if isinstance(reference, Parts) and (interval := _interval(candidate)):
            return fault(interval, reference, policy)
        value = _named_value(candidate) or _approximated(candidate)
        return fault(value, reference, policy) if value else "an equation is not the value"
    if isinstance(reference, Parts):
        return _parts_fault(candidate, reference, policy)
    if isinstance(candidate, Parts):
        return "several values for one"
    return _amount_fault(candidate, reference, policy)


def text_fault(candidate: str, reference: str) -> str:
    """Compare texts, but ignore quotes and the difference between upper and lower case. If the texts consist only of
    words, spaces are ignored too."""
    if words(candidate) == words(reference):
        return ""
    expected = plain_words(reference)
    return "" if expected is not None and plain_words(candidate) == expected else "another answer"


# ---- amounts


def _amount_fault(candidate: Text | Amount, reference: Amount, policy: Policy) -> str:
    if isinstance(candidate, Text):
        calculable = (
            reference.number and re.search(r"[0-9]", candidate.raw) and re.search(r"[-+*/^]|\\[a-z]", candidate.raw)
        )
        if calculable:
            return "restates the problem: give the number"
        return "not a bare number" if reference.number else "not readable as mathematics"
    if reason := unit_fault(candidate.unit, reference.unit, policy.units):
        return reason
    if reference.number:
        if candidate.number:
            return number_fault(candidate.number, reference.number)
        return "restates the problem: give the number"
    if candidate.percent != reference.percent:
        return "a percentage is not the bare number"
    if candidate.tree is None or reference.tree is None or not equal_formulas(reference.tree, candidate.tree):
        return "another answer"
    return unfinished(candidate.tree, reference.tree)


# ---- several values


def _parts_fault(candidate: Answer, reference: Parts, policy: Policy) -> str:
    if isinstance(candidate, (Text, Amount)):
        return "one value for several" if isinstance(candidate, Amount) else "another answer"
    assert isinstance(candidate, Parts)
    named = _named_tuples(reference.members)
    if named:
        return _named_fault(candidate, named, policy)
    own = _named_tuples(candidate.members)
    if own:
        candidate = Parts(candidate.raw, "", tuple(value for _, values in own for value in values))
    candidate, reference = _as_unions(candidate, reference)
    kinds = {candidate.brackets or "{}", reference.brackets or "{}"}
    if len(kinds) > 1:
        return "another kind of brackets"
    if reference.brackets in ("", "{}", "u"):
        return _multiset_fault(candidate.members, reference.members, policy)
    return _sequence_fault(candidate.members, reference.members, policy)


def _as_unions(candidate: Parts, reference: Parts) -> tuple[Parts, Parts]:
    """Write a list of inequalities, such as `x<1 or x>2`, as a union of intervals if the other answer is a union."""
    if "u" not in (candidate.brackets, reference.brackets):
        return candidate, reference
    found = []
    for parts in (candidate, reference):
        intervals = [_interval(member) for member in parts.members]
        complete = not parts.brackets and all(intervals)
        found.append(Parts(parts.raw, "u", tuple(filter(None, intervals))) if complete else parts)
    return found[0], found[1]


def _sequence_fault(candidate: Sequence[Answer], reference: Sequence[Answer], policy: Policy) -> str:
    if len(candidate) != len(reference):
        return f"{len(candidate)} values instead of {len(reference)}"
    return next((reason for pair in zip(candidate, reference, strict=True) if (reason := fault(*pair, policy))), "")


def _multiset_fault(candidate: Sequence[Answer], reference: Sequence[Answer], policy: Policy) -> str:
    """Compare lists whose values can have any order. A repeated value counts each time, so `2, 2` is not equal to
    `2`."""
    return _matching(candidate, reference, lambda one, other: fault(one, other, policy))


def _matching(candidate: Sequence, reference: Sequence, reason: Callable[..., str]) -> str:
    if len(candidate) != len(reference):
        return f"{len(candidate)} values instead of {len(reference)}"
    left = list(candidate)
    for expected in reference:
        reasons = [reason(one, expected) for one in left]
        if "" not in reasons:
            return reasons[0] if len(reference) == 1 else "another answer"
        del left[reasons.index("")]
    return ""


Named = list[tuple[tuple[str, ...], tuple[Answer, ...]]]


def _named_tuples(members: Sequence[Answer]) -> Named:
    """Return `p=5, q=2, p=7, q=2` as [((p, q), (5, 2)), ((p, q), (7, 2))].

    Returns [] if one of the values has no name.
    """
    groups: Named = []
    for member in members:
        value = _named_value(member) if isinstance(member, Relation) and len(member.members) == 2 else None
        if value is None or not isinstance(member, Relation):
            return []
        if not groups or member.name in groups[-1][0]:
            groups.append(((), ()))
        names, values = groups[-1]
        groups[-1] = ((*names, member.name), (*values, value))
    return groups if len({frozenset(names) for names, _ in groups}) == 1 else []


def _named_fault(candidate: Parts, reference: Named, policy: Policy) -> str:
    own = _named_tuples(candidate.members)
    if own:
        return _matching(own, reference, lambda one, other: _by_name(one, other, policy))
    width = len(reference[0][0])
    if width == 1:
        return _multiset_fault(candidate.members, [values[0] for _, values in reference], policy)
    if len(reference) == 1:
        return _sequence_fault(candidate.members, reference[0][1], policy)
    tuples = [Parts("", "()", values) for _, values in reference]
    return _multiset_fault(candidate.members, tuples, policy)


def _by_name(candidate: tuple, reference: tuple, policy: Policy) -> str:
    values = dict(zip(*candidate, strict=True))
    if values.keys() != set(reference[0]):
        return "another name"
    return next((r for name, value in zip(*reference, strict=True) if (r := fault(values[name], value, policy))), "")


# ---- relations


def _named_value(relation: Relation) -> Answer | None:
    """Return the value of `x = 5`, `x \\approx 5` or `x in [1, 2]`, or None for a longer chain of relations."""
    if relation.name and all(operator in ("=", "in", "~") for operator in relation.operators):
        return relation.members[-1] if len(relation.members) == 2 else None
    return None


def _approximated(relation: Relation) -> Answer | None:
    r"""Return the exact value of `\sqrt{2} \approx 1.414` if the decimal number differs by at most one percent."""
    exact, number = relation.members[0], relation.members[-1]
    if relation.operators != ("~",) or not isinstance(exact, Amount) or not isinstance(number, Amount):
        return None
    near = exact.tree is not None and number.tree is not None and nearly_equal(exact.tree, number.tree)
    return exact if near and number.number and not exact.number else None


def _relation_fault(candidate: Answer, reference: Relation, policy: Policy) -> str:
    if (interval := _interval(reference)) and (
        not isinstance(candidate, Relation) or set(reference.operators) - {"=", "in"}
    ):
        other = (_interval(candidate) or _named_value(candidate)) if isinstance(candidate, Relation) else candidate
        if other is not None:
            return fault(other, interval, policy)
    values = _values(reference)
    if isinstance(candidate, Relation) and (interval := _interval(candidate)) and values:
        candidate = interval
    if not isinstance(candidate, Relation):
        if not values:
            return "the value is not the equation"
        return "" if any(not fault(candidate, value, policy) for value in values) else "another answer"
    if reference.name and candidate.name and (expected := values) and (given := _values(candidate)):
        if reference.name != candidate.name and _name_is_label(reference):
            return "another name"
        if reference.name == candidate.name:
            reasons = [min((fault(one, value, policy) for value in expected), key=len) for one in given]
            if not any(reasons):
                return ""
            if len(expected) > 1 or len(given) > 1:
                return next(filter(None, reasons))
    if len(reference.members) != len(candidate.members):
        return "another relation"
    return _relations_differ(candidate, reference)


def _name_is_label(reference: Relation) -> bool:
    return len(reference.members) == 2 and not _trees(reference)


def _values(relation: Relation) -> list[Answer]:
    """Return all values of a named value. For example, `P = 2000/3 ~ 666.7` has two values."""
    if not relation.name or not all(operator in ("=", "in", "~") for operator in relation.operators):
        return []
    return list(relation.members[1:])


_MIRRORED = {"<": "<", "<=": "<=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def _trees(relation: Relation) -> list[Tree]:
    trees = []
    for member in relation.members:
        tree = member.tree if isinstance(member, Amount) else parse_formula(member.raw)
        if tree is None or (isinstance(member, Amount) and (member.unit or member.percent)):
            return []
        trees.append(tree)
    return trees


def _differences(relation: Relation) -> list[tuple[str, Tree]]:
    """Return each step `a < b` of a chain as ("<", b - a), and each step `a = b` as ("=", b - a).

    Returns [] if a part of the chain is not a formula.
    """
    trees = _trees(relation)
    if not trees or any(operator not in _MIRRORED for operator in relation.operators):
        return []
    steps = []
    for operator, left, right in zip(relation.operators, trees, trees[1:], strict=False):
        if operator in (">", ">="):
            left, right = right, left
        steps.append((_MIRRORED[operator], ("add", right, negated(left))))
    return steps


def _relations_differ(candidate: Relation, reference: Relation) -> str:
    expected, given = _differences(reference), _differences(candidate)
    if not expected or not given:
        return "another relation"

    def step_fault(one: tuple[str, Tree], other: tuple[str, Tree]) -> str:
        if one[0] != other[0]:
            return "another relation"
        sign = proportional(other[1], one[1])
        return "" if sign is not None and (sign > 0 or one[0] in ("=", "!=")) else "another equation"

    return _matching(given, expected, step_fault)


def _interval(answer: Answer) -> Parts | None:
    """Return the interval of a relation such as `1 < x <= 3` or `x > 2`, or None for other relations."""
    if not isinstance(answer, Relation) or any(op not in ("<", "<=", ">", ">=") for op in answer.operators):
        return None
    members, operators = list(answer.members), list(answer.operators)
    if all(operator in (">", ">=") for operator in operators):
        members, operators = members[::-1], [{">": "<", ">=": "<="}[operator] for operator in operators[::-1]]
    infinity = Amount("\\infty", None, ("inf",))
    minus = Amount("-\\infty", None, ("neg", ("inf",)))
    names = [bool(name_of(member.raw)) and not re.fullmatch(r"[0-9.]+|e|\\pi", member.raw) for member in members]
    if ">" in operators or ">=" in operators or names.count(True) != 1:
        return None
    if len(members) == 3 and names[1]:
        return Parts(
            "", ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]"), (members[0], members[2])
        )
    if len(members) != 2:
        return None
    if names[0]:
        return Parts("", "(" + (")" if operators[0] == "<" else "]"), (minus, members[1]))
    return Parts("", ("(" if operators[0] == "<" else "[") + ")", (members[0], infinity))
