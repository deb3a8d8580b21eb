r"""Check that a candidate answer is a result and not an unfinished calculation. For example, `\sqrt{88}` only restates
the problem if `2\sqrt{22}` is right.

A formula with the right value is refused if the reference has done a calculation that the formula has not done.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

from schoolhouse.tasks.answers.formula import Tree, symbols, walk

_PLAIN = ("num", "sym")
_LOGARITHMS = {"ln", "log", "lg"}


def unfinished(candidate: Tree, reference: Tree) -> str:
    """Return the calculation that a candidate with the right value still needs, or "" if the candidate is a result."""
    extra = _functions(candidate) - _functions(reference)
    if extra and not symbols(reference):
        return f"restates the problem: calculate the {min(extra)}"
    if _idle(candidate) > _idle(reference):
        return "restates the problem: leave out operations that change nothing"
    if len(_unsimplified_roots(candidate)) > len(_unsimplified_roots(reference)):
        return "restates the problem: simplify the root"
    if _is_factored(reference) and candidate[0] in ("add", "neg") and not _is_factored(candidate):
        return "restates the problem: give the factors"
    if not symbols(reference) and _loose_ends(candidate) > _loose_ends(reference):
        return "restates the problem: calculate the sums and products"
    return ""


def _idle(tree: Tree) -> int:
    """Count the operations that do not change the value of a formula: adding 0, multiplying by 1, dividing by 1, and
    the power of 1."""
    zero, one = ("num", Fraction(0)), ("num", Fraction(1))
    return sum(
        (part[0] == "add" and zero in part[1:])
        or (part[0] == "mul" and one in part[1:])
        or (part[0] in ("div", "pow") and part[2] == one)
        for part in walk(tree)
    )


def _functions(tree: Tree) -> set[str]:
    found = set()
    for part in walk(tree):
        if part[0] == "fn":
            found.add("logarithm" if part[1] in _LOGARITHMS else part[1])
        elif part[0] in ("fact", "binom", "floor", "ceil"):
            found.add({"fact": "factorial", "binom": "binomial"}.get(part[0], part[0]))
        elif part[0] == "abs":
            found.add("absolute value")
    return found


def _unsimplified_roots(tree: Tree) -> list[Tree]:
    r"""Return the roots that can be simplified, such as `\sqrt{88}`. The number 88 is divisible by the square 4."""
    found = []
    for part in walk(tree):
        if part[0] != "root" or symbols(part):
            continue
        radicand, index = part[1], part[2]
        degree = index[1] if index[0] == "num" else Fraction(0)
        if radicand[0] == "num" and degree.denominator == 1 and 2 <= degree <= 20:
            if radicand[1].denominator == 1 and _has_power(abs(int(radicand[1])), int(degree)):
                found.append(part)
        elif radicand[0] in ("add", "mul") and all(term[0] in ("num", "root") for term in radicand[1:]):
            numbers = [term for term in radicand[1:] if term[0] == "num"]
            if len(numbers) > 1 or any(_unsimplified_roots(term) for term in radicand[1:]):
                found.append(part)
    return found


def _has_power(number: int, degree: int) -> bool:
    """Return True if a whole number is divisible by b ** degree for a whole number b from 2 to 1,000."""
    if number < 2**degree:
        return False
    if degree == 2 and isqrt(number) ** 2 == number:
        return True
    return any(number % base**degree == 0 for base in range(2, min(1_000, int(number ** (1 / degree)) + 2)))


def _is_factored(tree: Tree) -> bool:
    """Return True if a formula is a product or a power, has a sum with variables as a factor, and has no division."""
    if tree[0] == "neg":
        return _is_factored(tree[1])
    if tree[0] == "pow":
        return tree[1][0] == "add" and bool(symbols(tree[1])) and _whole(tree[2])
    if tree[0] != "mul":
        return False
    factors = tree[1:]
    if any(part[0] == "div" or (part[0] == "num" and part[1].denominator != 1) for part in factors):
        return False
    return any((part[0] == "add" and symbols(part)) or _is_factored(part) for part in factors)


def _whole(tree: Tree) -> bool:
    return tree[0] == "num" and tree[1].denominator == 1 and tree[1] > 1


def _loose_ends(tree: Tree) -> int:
    r"""Count sums and products of numbers that can be calculated, such as `2+3`, `2 \cdot 3` and `(1+2i)6 - 3i`."""
    count = 0
    for part in walk(tree):
        if part[0] == "mul":
            numbers = sum(factor[0] == "num" or _is_power_of_numbers(factor) for factor in part[1:])
            sums = sum(factor[0] == "add" for factor in part[1:])
            count += (numbers > 1) + (sums > 1)
            count += len(part[1:]) - len({repr(factor) for factor in part[1:]})
        elif _is_power_of_a_sum(part):
            count += 1
        elif part[0] == "add":
            terms = [term[1] if term[0] == "neg" else term for term in part[1:]]
            count += sum(_is_rational(term) for term in terms) > 1
            count += any(term[0] == "add" or _is_power_of_a_sum(term) for term in terms)
            count += any(term[0] == "mul" and any(factor[0] == "add" for factor in term[1:]) for term in terms)
            bases = [_irrational_part(term) for term in terms if not _is_rational(term)]
            count += len(bases) - len(set(bases))
    return count


def _is_power_of_a_sum(tree: Tree) -> bool:
    return tree[0] == "pow" and tree[1][0] == "add" and _whole(tree[2])


def _is_power_of_numbers(tree: Tree) -> bool:
    return tree[0] == "pow" and tree[1][0] == tree[2][0] == "num"


def _is_rational(tree: Tree) -> bool:
    return tree[0] == "num" or (tree[0] == "div" and tree[1][0] == tree[2][0] == "num")


def _irrational_part(tree: Tree) -> str:
    """Return a term without its factors that are rational numbers. Terms that can be added, such as 2x and 3x, give the
    same text."""
    if tree[0] == "mul":
        return repr(sorted(repr(factor) for factor in tree[1:] if not _is_rational(factor)))
    if tree[0] == "div":
        return _irrational_part(tree[1]) if tree[2][0] == "num" else repr(tree)
    return repr([repr(tree)])
