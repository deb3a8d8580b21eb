"""Compare two formulas by their values at six points, to about fifty digits of each value.

It is very unlikely that two different formulas have the same values at all six points. The number of digits grows with
the numbers in a formula, so that sqrt(10^120 + 1) and 10^60 differ. If a value is too large, the value is not
calculated.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
from mpmath.libmp import NoConvergence

from schoolhouse.tasks.answers.formula import Tree, ordered, symbols, walk

DIGITS = 60
MAX_DIGITS = 3_000
"""The largest number of digits of a calculation. A formula that needs more digits is compared by its spelling."""

MAX_EXPONENT = 100_000
"""The largest power of ten of a value."""

MAX_NODES = 400
"""The largest number of operations of a formula. A formula with more operations is compared by its spelling."""

_POINTS = 6


class TooLarge(ArithmeticError):
    """This exception is raised for a value whose calculation would take too long."""


class Undefined(ArithmeticError):
    """This exception is raised for a value that does not exist, such as 1/0."""


class _Evaluator:
    """An evaluator calculates the values of formulas with a fixed number of digits.

    `magnitude` is the largest absolute exponent (power of ten) of all values in the calculation.
    """

    def __init__(self, context: Any, point: Mapping[str, Fraction]) -> None:
        self.mp, self.point, self.magnitude = context, point, 0.0

    def value(self, tree: Tree) -> Any:
        result = self._value(tree)
        if not self.mp.isfinite(result):
            raise Undefined(tree[0])
        if result:
            size = abs(float(self.mp.mag(result))) * 0.30103
            if size > MAX_EXPONENT:
                raise TooLarge(tree[0])
            self.magnitude = max(self.magnitude, size)
        return result

    def _value(self, tree: Tree) -> Any:
        mp, kind = self.mp, tree[0]
        if kind == "num":
            return mp.mpf(tree[1].numerator) / tree[1].denominator
        if kind == "sym":
            return self.symbol(tree[1])
        if kind in ("degree", "inf"):
            raise Undefined(kind)
        if kind == "fn":
            return self.function(tree)
        parts = [self.value(part) for part in tree[1:]]
        if kind == "add":
            return mp.fsum(parts) if all(isinstance(part, mp.mpf) for part in parts) else sum(parts[1:], parts[0])
        if kind == "mul":
            result = parts[0]
            for part in parts[1:]:
                result *= part
            return result
        if kind == "div":
            if not parts[1]:
                raise Undefined("division by zero")
            return parts[0] / parts[1]
        if kind == "neg":
            return -parts[0]
        if kind == "pow":
            return self.power(*parts)
        if kind == "root":
            return self.root(*parts)
        if kind == "abs":
            return abs(parts[0])
        if kind in ("floor", "ceil"):
            return (mp.floor if kind == "floor" else mp.ceil)(parts[0])
        if any(abs(part) > MAX_EXPONENT // 5 for part in parts):
            raise TooLarge(kind)
        return mp.factorial(parts[0]) if kind == "fact" else mp.binomial(*parts)

    def symbol(self, name: str) -> Any:
        if name in self.point:
            value = self.point[name]
            return self.mp.mpf(value.numerator) / value.denominator
        return {"e": self.mp.e, "\\pi": self.mp.pi, "i": self.mp.j}[name] * self.mp.one

    def power(self, base: Any, exponent: Any) -> Any:
        if not base:
            if exponent == 0 or self.mp.re(exponent) < 0:
                raise Undefined("0 to a power")
            return base
        if abs(exponent) * (abs(self.mp.mag(base)) + 2) > MAX_EXPONENT * 4:
            raise TooLarge("power")
        return self.mp.power(base, exponent)

    def root(self, value: Any, index: Any) -> Any:
        if not index:
            raise Undefined("root")
        odd = self.mp.im(index) == 0 and index == int(index) and int(index) % 2
        if odd and self.mp.im(value) == 0 and value < 0:
            return -self.power(-value, 1 / index)
        return self.power(value, 1 / index) if index != 2 else self.mp.sqrt(value)

    def function(self, tree: Tree) -> Any:
        mp, name = self.mp, tree[1]
        x = self.value(tree[2])
        if abs(x) > MAX_EXPONENT and name not in ("ln", "log", "lg"):
            raise TooLarge(name)
        if name in ("ln", "log", "lg"):
            base = self.value(tree[3]) if len(tree) > 3 else (mp.e if name == "ln" else mp.mpf(10))
            if not x or not base or base == 1:
                raise Undefined("logarithm")
            return mp.log(x) / mp.log(base)
        names = {"arc" + short: "a" + short for short in ("sin", "cos", "tan", "cot", "sec", "csc")}
        function = getattr(mp, names.get(name, name), None)
        if name not in _KNOWN or function is None:
            raise Undefined(name)
        return function(x)


_KNOWN = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch".split()
)


def _point(names: frozenset[str], number: int) -> dict[str, Fraction]:
    """Return a point with small rational numbers. If the argument `number` is odd, the point also has negative numbers.

    The point is the same in every process.
    """
    point = {}
    for place, name in enumerate(sorted(names)):
        seed = sum((i + 1) * ord(letter) for i, letter in enumerate(name)) + 7919 * number + 104_729 * place
        value = Fraction(301 + (seed * 48_271) % 2_147, 997)
        negative = number % 2 and (seed // 7 + number // 2) % 2 == 0
        point[name] = -value if negative or (number == 1) else value
    return point


@lru_cache(maxsize=4096)
def value_at(tree: Tree, names: frozenset[str], number: int, digits: int) -> tuple[Any, float] | None:
    """Return the value of a formula at a point, and its magnitude. Returns None if the value does not exist.

    Raises TooLarge if the calculation would take too long.
    """
    context = _context(digits)
    evaluator = _Evaluator(context, _point(names, number))
    try:
        return evaluator.value(tree), evaluator.magnitude
    except (Undefined, ZeroDivisionError, ValueError, TypeError):
        return None
    except (OverflowError, NoConvergence, MemoryError) as error:
        raise TooLarge(str(error)) from None


@lru_cache(maxsize=64)
def _context(digits: int) -> Any:
    context = mpmath.mp.clone()
    context.dps = digits
    return context


def equal_formulas(a: Tree, b: Tree) -> bool:
    """Return True if two formulas have the same value at every point where the first formula is real.

    If the first formula is real at fewer than two points, the values at all points are compared.
    """
    if ordered(a) == ordered(b):
        return True
    if a[0] == "inf" or b[0] == "inf" or a == ("neg", ("inf",)) or b == ("neg", ("inf",)):
        return False
    if len(walk(a)) > MAX_NODES or len(walk(b)) > MAX_NODES:
        return False
    names = symbols(a) | symbols(b)
    try:
        compared = [_equal_at(a, b, names, number) for number in range(_POINTS if names else 1)]
    except TooLarge:
        return False
    real = [equal for equal, is_real in compared if is_real]
    chosen = real if len(real) >= min(2, len(compared)) else [equal for equal, _ in compared]
    known = [equal for equal in chosen if equal is not None]
    return bool(known) and all(known)


def nearly_equal(a: Tree, b: Tree) -> bool:
    """Return True if two constants differ by at most one percent."""
    if symbols(a) or symbols(b):
        return False
    try:
        first, second = (value_at(tree, frozenset(), 0, DIGITS) for tree in (a, b))
    except TooLarge:
        return False
    return bool(first and second) and abs(first[0] - second[0]) <= abs(first[0]) / 100


def _equal_at(a: Tree, b: Tree, names: frozenset[str], number: int) -> tuple[bool | None, bool]:
    """Return whether two values at a point are equal (None if the first value does not exist), and whether the first
    value is real."""
    first, second = value_at(a, names, number, DIGITS), value_at(b, names, number, DIGITS)
    if first is None:
        return None, False
    real = mpmath.im(first[0]) == 0
    if second is None:
        return False, real
    if not _close(first[0], second[0], DIGITS):
        return False, real
    digits = int(DIGITS * 1.5 + 2.2 * max(first[1], second[1]))
    if digits > MAX_DIGITS:
        raise TooLarge("precision")
    digits = -(-digits // 50) * 50
    first, second = value_at(a, names, number, digits), value_at(b, names, number, digits)
    return first is not None and second is not None and _close(first[0], second[0], digits), real


def _close(a: Any, b: Any, digits: int) -> bool:
    """Return True if the difference of two values is very small in comparison with the larger value. A tiny rounding
    error counts as 0."""
    if a == b:
        return True
    size = max(abs(a), abs(b))
    small = min(abs(a), abs(b))
    tolerance = mpmath.mpf(10) ** -(digits - 12)
    return abs(a - b) <= size * tolerance or (not small and size <= tolerance)


def proportional(a: Tree, b: Tree) -> int | None:
    """Return the sign of the constant c for which a = c * b holds at all points, or None if no such constant exists."""
    names = symbols(a)
    if not names or names != symbols(b):
        return None
    ratios = []
    try:
        for number in range(_POINTS):
            first, second = value_at(a, names, number, DIGITS), value_at(b, names, number, DIGITS)
            if first is None or second is None:
                continue
            if not second[0] or not first[0]:
                return None
            ratios.append(first[0] / second[0])
    except TooLarge:
        return None
    if len(ratios) < 2 or not all(_close(ratio, ratios[0], DIGITS) for ratio in ratios):
        return None
    if mpmath.im(ratios[0]) != 0:
        return None
    return 1 if mpmath.re(ratios[0]) > 0 else -1
