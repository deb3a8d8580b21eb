r"""Read literal numbers exactly, such as `-1,234.50`, `6.02\times 10^{23}`, `\frac{3}{4}`, `1 1/2` and `28 %`."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Literal, NamedTuple

from schoolhouse.tasks.answers.spelling import clean

MAX_NUMBER_CHARS = 1_000
"""A number with more characters than this limit is no answer."""

MAX_POWER = 999
"""Largest power of ten of a literal number."""

LARGE_DENOMINATOR = 1_000
"""A fraction need not be in lowest terms if its denominator in lowest terms is at least this number."""

Form = Literal["integer", "decimal", "fraction", "mixed", "scientific", "power of ten", "repeating"]


class Number(NamedTuple):
    """A literal number. `reduced` is False if a fraction is not in lowest terms. `percent` is True if the number is a
    percentage."""

    value: Fraction
    form: Form
    percent: bool = False
    reduced: bool = True


_SIGN = r"(?P<sign>[-+]?)\s*"
_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?P<decimal>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = (
    r"(?:[eE](?P<e>[-+]?[0-9]+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*"
    r"(?:\{\s*(?P<power>[-+]?\s*[0-9]+)\s*\}|(?P<digit>[0-9])))"
)
_INTEGER = r"[-+]?\s*[0-9][0-9,]*\.?"
_FRACTION = (
    rf"(?:\\frac\s*(?:\{{\s*(?P<top>{_INTEGER})\s*\}}|(?P<top1>[0-9]))\s*"
    rf"(?:\{{\s*(?P<bottom>{_INTEGER})\s*\}}|(?P<bottom1>[0-9]))"
    r"|(?P<over>[0-9][0-9,]*\.?)\s*/\s*(?P<under>[0-9][0-9,]*|\(\s*[-+]?\s*[0-9][0-9,]*\s*\)))"
)
_PATTERNS = [
    re.compile(rf"{_SIGN}{_DECIMAL}{_POWER}?"),
    re.compile(rf"{_SIGN}{_FRACTION}"),
    re.compile(rf"{_SIGN}(?P<whole>{_DIGITS}) *(?:(?<= )|(?=\\frac)){_FRACTION}"),
    re.compile(r"(?P<sign>[-+]?)\s*10\s*\^\s*(?:\{\s*(?P<ten>[-+]?\s*[0-9]+)\s*\}|(?P<ten1>[0-9]))"),
    re.compile(
        rf"{_SIGN}(?P<before>[0-9]*)\.(?P<fixed>[0-9]*)\s*\\(?:overline|bar|dot)\s*(?:\{{(?P<again>[0-9]+)\}}|(?P<again1>[0-9]))"
    ),
]
_COMMA = re.compile(r"(?P<sign>[-+]?)\s*(?P<before>[0-9]+),(?P<after>[0-9]+)")


@lru_cache(maxsize=4096)
def read_number(text: str, comma: bool = False) -> Number | None:
    r"""Return the exact value of a literal number, or None for any other text, such as `3+4`, `2^3` or `\sqrt{4}`.

    If `comma` is true, `1000,99` is a number with a decimal comma. The text `0,111` always has a decimal comma, because
    no group of three digits starts with 0.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = clean(text)
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    if (inner := _without_parentheses(text)) != text:
        found = None if "," in inner else _read(inner, False)
        return found and found._replace(percent=percent)
    outer = re.match(r"([-+])\s*(?=\()", text)
    if outer and (inner := _without_parentheses(text[outer.end() :])) != text[outer.end() :]:
        found = None if "," in inner else _read(inner, False)
        return found and found._replace(value=-found.value if outer[1] == "-" else found.value, percent=percent)
    found = _read(text, comma)
    return found and found._replace(percent=percent)


def _read(text: str, comma: bool) -> Number | None:
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            part = {key: re.sub(r"[ ,()]", "", value) for key, value in match.groupdict("").items()}
            found = _value(part)
            if found is None:
                return None
            return found._replace(value=-found.value) if part["sign"] == "-" else found
    match = _COMMA.fullmatch(text)
    if match and (comma or re.fullmatch("0+", match["before"])):
        return Number(Fraction(f"{match['sign']}{match['before']}.{match['after']}"), "decimal")
    return None


def _value(part: dict[str, str]) -> Number | None:
    if "decimal" in part:
        power = part["e"] or part["power"] or part["digit"]
        if abs(int(power or 0)) > MAX_POWER:
            return None
        text = part["decimal"].rstrip(".") or "0"
        value = Fraction(text) * (Fraction(10) ** int(power) if power else 1)
        return Number(value, "scientific" if power else "decimal" if "." in text else "integer")
    if "ten" in part:
        power = int(part["ten"] or part["ten1"])
        return Number(Fraction(10) ** power, "power of ten") if abs(power) <= MAX_POWER else None
    if "again" in part:
        fixed, again = part["fixed"], part["again"] or part["again1"]
        shifted = int((part["before"] or "0") + fixed + again) - int((part["before"] or "0") + fixed)
        return Number(Fraction(shifted, (10 ** len(again) - 1) * 10 ** len(fixed)), "repeating")
    top, bottom = (
        int(value.rstrip("."))
        for value in (part["top"] or part["top1"] or part["over"], part["bottom"] or part["bottom1"] or part["under"])
    )
    if not bottom:
        return None
    whole = part.get("whole")
    reduced = gcd(top, bottom) == 1 and abs(bottom) != 1
    fraction = Fraction(top, bottom)
    if whole:
        if not 0 < top < bottom:
            return None
        return Number(int(whole) + fraction, "mixed", reduced=reduced)
    reduced = reduced or abs(top) == abs(bottom) or fraction.denominator >= LARGE_DENOMINATOR
    return Number(fraction, "fraction", reduced=reduced)


def _without_parentheses(text: str) -> str:
    while re.fullmatch(r"\([^()]*\)", text):
        text = text[1:-1].strip()
    return text


def number_fault(candidate: Number, reference: Number) -> str:
    """Return the reason why a number is not the reference, or an empty text if the number is the reference.

    A fraction is refused if the fraction is not in lowest terms, or if the reference is a decimal number.
    """
    if candidate.percent != reference.percent:
        return "a percentage is not the bare number"
    if candidate.value != reference.value:
        return "another number"
    same_form = candidate.form == reference.form
    if candidate.form in ("fraction", "mixed") and not candidate.reduced:
        return "restates the problem: give the fraction in lowest terms"
    if candidate.form == "fraction" and reference.form == "decimal":
        return "restates the problem: give the decimal number"
    if candidate.form == "power of ten" and not same_form and reference.form != "scientific":
        return "restates the problem: give the number"
    return ""
