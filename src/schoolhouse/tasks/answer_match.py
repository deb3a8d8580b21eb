"""Final answers: extract the one that a completion marks, and compare it with a reference.

Literal numbers are compared exactly, words by spelling, everything else by math-verify. math-verify runs only in worker
processes (worker_pool.py), because some expressions would keep it busy for ever.
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

MAX_NUMBER_CHARS = 1_000
"""Characters of a number; a longer one is no answer."""

MAX_EXPRESSION_CHARS = 2_000
"""Characters of an expression; a longer one is wrong."""

# ---- extracting the answer

_MARKS = re.compile(r"\\boxed[ \t]*\{|\\.|[{}]", re.DOTALL)


def extract_answer(completion: Completion) -> tuple[str | None, str]:
    r"""The final answer that a completion marks with \boxed{...} or <answer>...</answer>; or None and the reason.

    Equal marked answers (`5`, `5.0`) count as one. Different ones count as none, so that hedging does not pay.
    Inside <answer> the content of \boxed{...} is the answer. A marker that is not closed marks nothing.
    """
    text = completion.answer
    boxes, tags = _boxes(text), _tags(text)
    starts = [start for start, _ in boxes]
    tags = [(start, end) for start, end in tags if bisect_left(starts, start) == bisect_left(starts, end)]
    marked = [_clean(text[start:end]) for start, end in sorted(boxes + tags)]
    if not marked:
        return None, "no final answer" if completion.complete else "no final answer: the completion was cut off"
    marked = [*filter(None, marked[:-1]), marked[-1]]  # a quoted "put it in \\boxed{}" is no answer
    last = marked[-1]
    if any(_normal_form(other) != _normal_form(last) for other in marked[:-1]):
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
    r"""The text without surrounding spaces and without a second \boxed{} around the whole."""
    text = text.strip()
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    boxes = _boxes(text) if text.startswith("\\boxed") else []
    return text[slice(*boxes[0])].strip() if boxes and boxes[0][1] == len(text) - 1 else text


def _normal_form(text: str) -> Hashable:
    """Equal for two spellings of the same answer."""
    return parse_number(text) or normalize_words(text) or "".join(text.split())


# ---- parsing an answer


class Number(NamedTuple):
    """A literal number. `percent`: 50 % equals neither 50 nor 0.5."""

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


def parse_number(text: str) -> Number | None:
    r"""The exact value of a literal number; None for anything else.

    Numbers are `-1,234.50`, `1e3`, `3/4`, `\frac{3}{4}`, `\frac34`, `$5`, `50\%`, `x = 5`, `5.`. Not numbers are
    `1,23`, `1 1/2`, digits of other scripts, numbers with units, and expressions such as `3+4`, `2^3`, `\sqrt{4}`.
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
    r"""Plain words, or one letter such as `(B)`, without case and spaces; None for anything else."""
    text = _unwrap(text).removesuffix(".")
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return "".join(text.casefold().split()) if _WORDS.fullmatch(text) else None


def _unwrap(text: str) -> str:
    r"""The answer without markup around the whole of it: spaces, `$...$`, `\(...\)`, `\text{...}`."""
    text = text.strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            text = text[len(left) : -len(right)].strip()
            break
    match = _WRAPPERS.fullmatch(text)
    return match[1].strip() if match else text


# ---- comparing


def exactly_comparable(reference: str) -> bool:
    """Whether answers can be compared with this reference without math-verify, quickly and in any process."""
    return parse_number(_split_unit(reference)[0]) is not None or normalize_words(reference) is not None


def answer_match(completion: Completion, reference: str) -> Verdict:
    """Reward 1 if the marked final answer equals the reference, else 0 and the reason."""
    answer, reason = extract_answer(completion)
    return Verdict(0.0, reason) if answer is None else compare_answers(answer, reference)


def compare_answers(candidate: str, reference: str) -> Verdict:
    """Reward 1 if a final answer equals the reference, else 0 and the reason.

    A number must be a literal number of exactly that value: an expression with that value only restates the problem.
    A unit may be left out, but not changed or added. Words must be the same words. Other references are compared by
    math-verify, in worker processes only (see `exactly_comparable`).
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
    if "".join(candidate.split()) == "".join(reference.split()):
        return Verdict(1.0)
    return _compare_expressions(candidate, reference)


def _split_unit(text: str) -> tuple[str, str]:
    r"""`10\text{ cm}^2` -> `10`, `cm^2`; without a unit the text itself and ""."""
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


def _compare_expressions(candidate: str, reference: str) -> Verdict:
    """Compare by math-verify, after our own checks.

    math-verify alone accepts percentages, other brackets, other units, rounded decimals, another base, and equations.
    """
    candidate, reference = _MEMBER.sub("", candidate), _MEMBER.sub("", reference)
    if len(candidate) > MAX_EXPRESSION_CHARS:
        return Verdict(0.0, f"longer than {MAX_EXPRESSION_CHARS} characters")
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
    unit = _split_unit(candidate)[1]
    if unit and unit != _split_unit(reference)[1]:
        return Verdict(0.0, "another unit")
    if parent_process() is None:
        raise RuntimeError(
            f"comparing with {reference!r} needs math-verify, which may run for ever; grade in a worker process "
            "(`grade_all` or WorkerPool)"
        )
    expected, value = _parse(reference), _parse(candidate)
    if not expected:
        return Verdict(None, f"math-verify cannot read the reference {reference!r}")
    from math_verify import verify

    # Thirty digits: at the default six, 0.333333 equals 1/3 and 1.414214 equals the root of 2.
    equal = verify(expected, value, float_rounding=30, numeric_precision=50, timeout_seconds=None, raise_on_error=True)
    return Verdict(1.0) if equal else Verdict(0.0, "another answer" if value else "not readable as mathematics")


def _brackets(text: str) -> str | None:
    r"""The outer bracket of several values with commas: `(`, `[`, or "" for a set or a list. None: one value.

    math-verify accepts the interval or tuple `(1,2)` for the set `\{1,2\}`.
    """
    text = re.sub(r"\\(?:left|right|[bB]ig+[lr]?)(?![a-zA-Z])\s*", "", _unwrap(text))
    if "," not in text:
        return None
    return text[0] if text[0] in "[(" and text[-1] in ")]" else ""


def _parse(text: str) -> list:
    """The whole text as parsed by math-verify. Its alarm is off: the worker pool has the timeout."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"\\boxed{{{_unwrap(text)}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # ty: ignore[invalid-argument-type]
    )


def load_math_verify() -> None:
    """Import math-verify and use it once, which is slow. Its warning that the alarm is off is silenced."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _parse("\\frac{1}{2}")


# ---- a wrong answer


def perturb_answer(reference: str, coarse: bool = False) -> str:
    r"""A wrong answer of the same kind: a number off by a digit, another word, an expression with another digit.

    `72` -> `73`, `1,239` -> `1,238`, `\frac{0}{5}` -> `\frac{1}{5}`, `yes` -> `no`, `Paris` -> `Parit`.
    `coarse` changes the first digit or letter instead of the last: wrong even where the last digits may be rounded.
    """
    opposites = {"yes": "no", "true": "false"}
    opposites |= {other: word for word, other in opposites.items()}
    lower = reference.strip().casefold()
    if lower in opposites:
        other = opposites[lower]
        return other.upper() if reference.isupper() else other.capitalize() if reference[:1].isupper() else other
    digits = [match.start() for match in re.finditer("[0-9]", reference)]
    for at in digits if coarse else reversed(digits):
        changed = _replace(reference, at, str(int(reference[at]) + 1) if reference[at] < "9" else "8")
        if parse_number(reference) is None or parse_number(changed) not in (None, parse_number(reference)):
            return changed
    letters = [match.start() for match in re.finditer("[A-Za-z]", reference)]
    if letters and "\\" not in reference:
        at = letters[0 if coarse else -1]
        letter = reference[at]
        return _replace(reference, at, chr(ord(letter) + 1) if letter not in "zZ" else chr(ord(letter) - 1))
    return f"1+{reference}"


def _replace(text: str, at: int, character: str) -> str:
    return text[:at] + character + text[at + 1 :]


def normalized_answer(completion: Completion) -> Hashable | None:
    """The final answer in the form in which votes are counted; None where there is none."""
    answer, _ = extract_answer(completion)
    return None if answer is None else _normal_form(answer)
