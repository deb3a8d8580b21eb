"""Final answers: finding the one a reply marks, and comparing it with a reference.

Literal numbers are compared exactly, by us; words by spelling; everything else by math-verify, which runs only in a
worker process (pool.py), because some expressions would keep it busy for ever.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Hashable
from fractions import Fraction
from multiprocessing import parent_process
from typing import NamedTuple

from schoolhouse.types import Completion, Verdict

LONGEST_NUMBER = 1_000
"""Characters of a number that is compared exactly; a longer one is no answer."""

LONGEST_EXPRESSION = 2_000
"""Characters of an expression that is read at all."""

# ---- finding the answer

_MARKS = re.compile(r"\\boxed[ \t]*\{|\\.|[{}]", re.DOTALL)


def extract(reply: Completion) -> tuple[str | None, str]:
    r"""The final answer that a reply marks by \boxed{...} or <answer>...</answer>; or None and the reason.

    Marked twice alike is one answer (`5`, `5.0`); two different marked answers are none: nobody may hedge.
    What is marked inside <answer> by \boxed counts as the answer. A marker that is not closed marks nothing.
    """
    text = reply.answer
    boxes, tags = _boxes(text), _tags(text)
    starts = [start for start, _ in boxes]
    tags = [(start, end) for start, end in tags if bisect_left(starts, start) == bisect_left(starts, end)]
    marked = [_clean(text[start:end]) for start, end in sorted(boxes + tags)]
    if not marked:
        return None, "no final answer" if reply.complete else "no final answer: the reply was cut off"
    marked = [*filter(None, marked[:-1]), marked[-1]]  # an echo of "put it in \\boxed{}" is no answer
    last = marked[-1]
    if any(_form(other) != _form(last) for other in marked[:-1]):
        return None, "more than one final answer"
    return (last, "") if last else (None, "the final answer is empty")


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Spans of the contents of the outermost \boxed{...}, in one pass: braces balanced, escaped ones ignored."""
    spans: list[tuple[int, int]] = []
    stack: list[int | None] = []  # where a box's content starts; None for a plain brace
    for mark in _MARKS.finditer(text):
        token = mark.group()
        if token == "{":
            stack.append(None)
        elif token.startswith("\\boxed"):
            stack.append(mark.end())
        elif token == "}" and stack and (start := stack.pop()) is not None:
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, mark.start()))
    return spans


def _tags(text: str) -> list[tuple[int, int]]:
    """Spans of the contents of <answer>...</answer>; of several openings before a closing, the last."""
    spans, at = [], 0
    while (end := text.find("</answer>", at)) >= 0:
        start = text.rfind("<answer>", at, end)
        if start >= 0:
            spans.append((start + len("<answer>"), end))
        at = end + len("</answer>")
    return spans


def _clean(text: str) -> str:
    r"""Without spaces around it, and without a second \boxed{} around the whole."""
    text = text.strip()
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    boxes = _boxes(text) if text.startswith("\\boxed") else []
    return text[slice(*boxes[0])].strip() if boxes and boxes[0][1] == len(text) - 1 else text


def _form(text: str) -> object:
    """What makes two marked answers the same answer."""
    return number(text) or words(text) or "".join(text.split())


# ---- reading an answer


class Number(NamedTuple):
    """A literal number. `percent`: 50 % is not 50, and not 0.5 either."""

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
_MEMBER = re.compile(r"^\s*\$?\s*[A-Za-z]\s*\\in\b\s*")
_BASE = re.compile(r"[0-9]_\{?([0-9]+)\}?")
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}\.?")


def number(text: str) -> Number | None:
    r"""The value of a literal number, exactly; None for anything else.

    Read: `-1,234.50`, `1e3`, `3/4`, `\frac{3}{4}`, `\frac34`, `$5`, `50\%`, `x = 5`, `5.`; not read: digits of other
    scripts, `1,23`, `1 1/2`, units, and all that needs calculating (`3+4`, `17\times 23`, `2^3`, `\sqrt{4}`).
    """
    if len(text) > LONGEST_NUMBER:
        return None
    text = _unwrap(text).replace("{,}", ",").replace(",\\!", ",")
    found = _NUMBER.fullmatch(_VARIABLE.sub("", text, count=1) if _VARIABLE.match(text) else text)
    if not found:
        return None
    part = {name: value.replace("\u2212", "-").replace(" ", "") for name, value in found.groupdict("").items()}
    if part["decimal"]:
        value = Fraction(part["decimal"].replace(",", "") + ("e" + part["power"] if part["power"] else ""))
    else:
        top = part["over"] or part["top"] or part["short"][:1]
        bottom = part["under"] or part["bottom"] or part["short"][1:]
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    return Number(-value if part["sign"] == "-" else value, bool(part["percent"]))


def words(text: str) -> str | None:
    r"""Plain words (or one letter: `(B)`), in a form that ignores case and spaces; None for anything else."""
    text = _unwrap(text).removesuffix(".")
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return "".join(text.casefold().split()) if _WORDS.fullmatch(text) else None


def _unwrap(text: str) -> str:
    r"""Without what stands around a whole answer and means nothing: spaces, `$...$`, `\(...\)`, `\text{...}`."""
    text = text.strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            text = text[len(left) : -len(right)].strip()
            break
    found = _WRAPPERS.fullmatch(text)
    return found[1].strip() if found else text


# ---- comparing


def decidable(reference: str) -> bool:
    """Whether every candidate can be compared with this reference by us alone, quickly and in any process."""
    return number(_measure(reference)[0]) is not None or words(reference) is not None


def answer_match(reply: Completion, reference: str) -> Verdict:
    """1 if a reply's marked final answer equals the reference, else 0 and why."""
    found, reason = extract(reply)
    return Verdict(0.0, reason) if found is None else equal(found, reference)


def equal(candidate: str, reference: str) -> Verdict:
    """1 if a final answer equals the reference, else 0 and why.

    A number is right only as a literal number of exactly that value: an expression that comes to it restates the
    problem. A unit may be left out, but not changed or added. Words are right as the same words. Other references are
    compared by math-verify, in a worker process only (see `decidable`).
    """
    wanted = number(reference)
    if wanted is not None:
        return _equal_numbers(candidate, wanted)
    size, unit = _measure(reference)
    measured = number(size)
    if measured is not None:
        found, other = _measure(candidate)
        return _equal_numbers(found, measured) if other in ("", unit) else Verdict(0.0, "another unit")
    spelt = words(reference)
    if spelt is not None:
        return Verdict(1.0) if words(candidate) == spelt else Verdict(0.0, "another answer")
    if "".join(candidate.split()) == "".join(reference.split()):
        return Verdict(1.0)
    return _equal_expressions(candidate, reference)


def _measure(text: str) -> tuple[str, str]:
    r"""`10\text{ cm}^2` -> `10`, `cm^2`; without a unit the text itself and nothing."""
    text = _unwrap(text)
    found = _UNIT.search(text) if len(text) <= LONGEST_NUMBER else None
    if not found or not found.start():
        return text, ""
    if found["plain"] and number(text[: found.start()]) is None:
        return text, ""  # words, or letters of a formula
    name, power = (found["name"], found["power"]) if found["plain"] is None else (found["plain"], found["raised"])
    unit = "degree" if name is None else name + re.sub("[{}]", "", power or "")
    return text[: found.start()], "".join(unit.casefold().split())


def _equal_numbers(candidate: str, wanted: Number) -> Verdict:
    found = number(candidate)
    if found is None:
        calculable = re.search(r"[0-9]", candidate) and re.search(r"[-+*/^×·÷]|\\[a-z]", candidate)
        return Verdict(0.0, "restates the problem: give the number" if calculable else "not a bare number")
    if found.percent != wanted.percent:
        return Verdict(0.0, "a percentage is not the bare number")
    return Verdict(1.0) if found.value == wanted.value else Verdict(0.0, "another number")


def _equal_expressions(candidate: str, reference: str) -> Verdict:
    """By math-verify, after what it would let pass: percentages, brackets of another kind, units, rounded decimals,
    another base, an equation of two values."""
    candidate, reference = _MEMBER.sub("", candidate), _MEMBER.sub("", reference)
    if len(candidate) > LONGEST_EXPRESSION:
        return Verdict(0.0, f"longer than {LONGEST_EXPRESSION} characters")
    if ("%" in candidate) != ("%" in reference):
        return Verdict(0.0, "a percentage is not the bare number")
    kinds = {_brackets(candidate), _brackets(reference)}
    if len(kinds) == 2 and None not in kinds:
        return Verdict(0.0, "another kind of brackets")
    bases = [_BASE.findall(text) for text in (candidate, reference)]
    if bases[0] and bases[0] != bases[1]:
        return Verdict(0.0, "another base")
    left, equals, _ = candidate.partition("=")
    if equals and "=" not in reference and re.search("[0-9]", left):
        return Verdict(0.0, "an equation is not the value")
    unit = _measure(candidate)[1]
    if unit and unit != _measure(reference)[1]:
        return Verdict(0.0, "another unit")
    if parent_process() is None:
        raise RuntimeError(
            f"comparing with {reference!r} needs math-verify, which may run for ever: judge through the task's pool"
        )
    wanted, found = _parse(reference), _parse(candidate)
    if not wanted:
        return Verdict(None, f"math-verify cannot read the reference {reference!r}")
    from math_verify import verify as same

    # Thirty digits: at the default six, 0.333333 is 1/3 and 1.414214 is the root of 2.
    right = same(wanted, found, float_rounding=30, numeric_precision=50, timeout_seconds=None, raise_on_error=True)
    return Verdict(1.0) if right else Verdict(0.0, "another answer" if found else "not readable as mathematics")


def _brackets(text: str) -> str | None:
    r"""Of several things with commas, what they are by the outer brackets: `(` or `[`, or nothing for a set or a list.

    math-verify lets the interval or tuple `(1,2)` pass for the set `\{1,2\}`. None: not several things.
    """
    text = re.sub(r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])\s*", "", _unwrap(text))
    if "," not in text:
        return None
    return text[0] if text[0] in "[(" and text[-1] in ")]" else ""


def _parse(text: str) -> list:
    """What math-verify reads, all of the text and nothing but it. Its alarm is off: the pool has the clock."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"\\boxed{{{_unwrap(text)}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # ty: ignore[invalid-argument-type]
    )


def load_math_verify() -> None:
    """Import it and use it once (slow the first time), and keep it from warning that its alarm is off."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _parse("\\frac{1}{2}")


# ---- a wrong answer


def perturb(reference: str, coarse: bool = False) -> str:
    r"""A wrong answer of the same kind: a number off by a digit, another word, an expression with another digit.

    `72` -> `73`, `1,239` -> `1,238`, `\frac{0}{5}` -> `\frac{1}{5}`, `yes` -> `no`, `Paris` -> `Parit`.
    `coarse` changes the first digit or letter and not the last: wrong also where the last digits may be rounded.
    """
    opposites = {"yes": "no", "true": "false"}
    opposites |= {other: word for word, other in opposites.items()}
    lower = reference.strip().casefold()
    if lower in opposites:
        other = opposites[lower]
        return other.upper() if reference.isupper() else other.capitalize() if reference[:1].isupper() else other
    digits = [found.start() for found in re.finditer("[0-9]", reference)]
    for at in digits if coarse else reversed(digits):
        changed = _replace(reference, at, str(int(reference[at]) + 1) if reference[at] < "9" else "8")
        if number(reference) is None or number(changed) not in (None, number(reference)):
            return changed
    letters = [found.start() for found in re.finditer("[A-Za-z]", reference)]
    if letters and "\\" not in reference:
        at = letters[0 if coarse else -1]
        letter = reference[at]
        return _replace(reference, at, chr(ord(letter) + 1) if letter not in "zZ" else chr(ord(letter) - 1))
    return f"1+{reference}"


def _replace(text: str, at: int, character: str) -> str:
    return text[:at] + character + text[at + 1 :]


def normalized_answer(reply: Completion) -> Hashable | None:
    """The final answer in the form in which answers are counted; None where there is none."""
    answer, _ = extract(reply)
    return None if answer is None else number(answer) or words(answer) or "".join(answer.split())
