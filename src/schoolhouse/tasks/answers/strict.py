r"""Compare literal numbers and words strictly. A number must have exactly the same value. Formulas are not calculated.

The task `school` (generated problems) grades with this comparison. The normal form of answers also counts equal
answers in majority votes. Published results depend on this comparison, so do not change which answers the comparison
accepts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from fractions import Fraction
from typing import NamedTuple

from schoolhouse.tasks.answers.numbers import MAX_NUMBER_CHARS
from schoolhouse.types import Verdict


class Number(NamedTuple):
    """A literal number. `percent` marks a percentage, because 50 % equals neither 50 nor 0.5."""

    value: Fraction
    percent: bool = False


_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    r"(?![^$]*\$[^$]*\$)(?:\\?\$\s*)?(?P<sign>[-+\u2212]?)\s*(?:\\?\$\s*)?(?:"
    rf"(?P<decimal>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE](?P<power>[-+]?[0-9]{{1,3}}))?"
    r"|(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)"
    r"|\\[dt]?frac\s*(?:\{\s*(?P<top>[-\u2212]?\s*[0-9]+)\s*\}\s*\{\s*(?P<bottom>[0-9]+)\s*\}|(?P<short>[0-9][0-9]))"
    r")\s*(?P<percent>(?:\\?%)?)\.?"
)
_VARIABLE = re.compile(r"[A-Za-z]\s*=\s*(?=[^=\s])")
_WORDS = re.compile(r"[^\W\d_]+(?:['’\s-]+[^\W\d_]+)*")
_UNIT = re.compile(
    r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°"
    r"|(?:\\[ ,;:!]|~|\s)*\\(?:text|mathrm|mbox)\s*\{(?P<name>[^{}\\]*)\}(?P<power>\^\{?[0-9]\}?)?"
    r"|(?:\\[ ,;:]|~|\s)+(?P<plain>[A-Za-z]+)(?P<raised>\^\{?[0-9]\}?)?)\.?$"
)
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}\.?")


def parse_number(text: str) -> Number | None:
    r"""Return the exact value of a literal number, or None for any other text.

    Examples of numbers are `-1,234.50`, `1e3`, `3/4`, `\frac{3}{4}`, `\frac34`, `$5`, `50\%`, `x = 5` and `5.`. The
    following texts are not numbers: `1,23`, `1 1/2`, digits of other alphabets, numbers with units, and expressions
    such as `3+4`.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = _unwrap(text).replace("{,}", ",").replace(",\\!", ",")
    match = _NUMBER.fullmatch(_VARIABLE.sub("", text, count=1) if _VARIABLE.match(text) else text)
    if not match:
        return None
    part = {name: value.replace("\u2212", "-").replace(" ", "") for name, value in match.groupdict("").items()}
    if part["decimal"]:
        value = Fraction(part["decimal"].replace(",", "") + ("e" + part["power"] if part["power"] else ""))
    else:
        top = part["over"] or part["top"] or part["short"][:1]
        bottom = part["under"] or part["bottom"] or part["short"][1:]
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    return Number(-value if part["sign"] == "-" else value, bool(part["percent"]))


def normalize_words(text: str) -> str | None:
    r"""Return plain words, or one letter such as `(B)`, in lower case and without spaces. Returns None for any other
    text."""
    text = _unwrap(text).removesuffix(".")
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return "".join(text.casefold().split()) if _WORDS.fullmatch(text) else None


def _unwrap(text: str) -> str:
    r"""Remove spaces, `$...$`, `\(...\)` or `\text{...}` around the whole answer."""
    text = text.strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            text = text[len(left) : -len(right)].strip()
            break
    match = _WRAPPERS.fullmatch(text)
    return match[1].strip() if match else text


def normal_form(text: str) -> Hashable:
    """Return a value that is equal for two spellings of the same answer."""
    return parse_number(text) or normalize_words(text) or "".join(text.split())


def strict_compare(candidate: str, reference: str) -> Verdict:
    """Give reward 1 if a final answer is the same number or the same words as the reference, else 0 and the reason.

    A final answer can leave out the unit of the reference, but must not change or add a unit.
    """
    expected = parse_number(reference)
    if expected is not None:
        return _compare_numbers(candidate, expected)
    amount, unit = _split_unit(reference)
    expected = parse_number(amount)
    if expected is not None:
        candidate_amount, candidate_unit = _split_unit(candidate)
        if candidate_unit not in ("", unit):
            return Verdict(0.0, "another unit")
        return _compare_numbers(candidate_amount, expected)
    expected_words = normalize_words(reference)
    if expected_words is not None:
        return Verdict(1.0) if normalize_words(candidate) == expected_words else Verdict(0.0, "another answer")
    same = "".join(candidate.split()) == "".join(reference.split())
    return Verdict(1.0) if same else Verdict(0.0, "another answer")


def _split_unit(text: str) -> tuple[str, str]:
    r"""Split `10\text{ cm}^2` into `10` and `cm^2`. If the text has no unit, the result is the text and ""."""
    text = _unwrap(text)
    match = _UNIT.search(text) if len(text) <= MAX_NUMBER_CHARS else None
    if not match or not match.start():
        return text, ""
    if match["plain"] and parse_number(text[: match.start()]) is None:
        return text, ""  # words, or letters of a formula
    name, power = (match["name"], match["power"]) if match["plain"] is None else (match["plain"], match["raised"])
    unit = "degree" if name is None else name + re.sub("[{}]", "", power or "")
    return text[: match.start()], "".join(unit.casefold().split())


def _compare_numbers(candidate: str, expected: Number) -> Verdict:
    value = parse_number(candidate)
    if value is None:
        calculable = re.search(r"[0-9]", candidate) and re.search(r"[-+*/^×·÷]|\\[a-z]", candidate)
        return Verdict(0.0, "restates the problem: give the number" if calculable else "not a bare number")
    if value.percent != expected.percent:
        return Verdict(0.0, "a percentage is not the bare number")
    return Verdict(1.0) if value.value == expected.value else Verdict(0.0, "another number")
