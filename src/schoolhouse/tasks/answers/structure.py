r"""Read the structure of an answer: an amount with a unit, a list, a tuple, an interval, a matrix, a relation or text.

(1, \frac{\pi}{2}]     Parts("(]", amounts)
x = 1 \text{ or } x=2  Parts("", relations)
2\sqrt{3}\text{ cm}    Amount(tree, unit="cm")
2021-03-04             Text
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from schoolhouse.tasks.answers.formula import Tree, parse_formula, walk
from schoolhouse.tasks.answers.numbers import Number, read_number
from schoolhouse.tasks.answers.spelling import clean, plain_words
from schoolhouse.tasks.answers.tokens import FUNCTIONS
from schoolhouse.tasks.answers.units import split_unit


class Text(NamedTuple):
    """An answer that is text and not a formula. The text is compared by its spelling."""

    raw: str


class Amount(NamedTuple):
    """A literal number or a formula, and its unit. For a formula, `number` is None."""

    raw: str
    number: Number | None
    tree: Tree | None
    unit: str = ""
    percent: bool = False


class Parts(NamedTuple):
    """Several values in brackets, or a list without brackets.

    With the brackets "()", "(]", "[)" and "[]", the order of the values matters. With "{}" and "" (a list), the order
    does not matter. The brackets "u" mean a union of sets, "matrix" a matrix, and "row" a row of a matrix.
    """

    raw: str
    brackets: str
    members: tuple[Answer, ...]


class Relation(NamedTuple):
    """A chain of relations: `members[0] operators[0] members[1] ...`. Operators are signs such as = and <, and `in`.

    If the first member of the chain is only a name, such as `x`, the field `name` has this name.
    """

    raw: str
    operators: tuple[str, ...]
    members: tuple[Answer, ...]
    name: str = ""


Answer = Text | Amount | Parts | Relation

_OPEN, _CLOSE = "([{", ")]}"
_OPERATORS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in"}
_OPERATORS |= {"\\equiv": "==", "\\sim": "~", ":=": "="}
_RELATION = re.compile(r":=|\\(?:le|ge|ne|approx|in|equiv|sim)(?![a-zA-Z])|[=<>]")
_SEPARATOR = re.compile(r"[,;\n]|\\\\|\\text\{\s*(?:,?\s*(?:and|or|AND|OR))\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[pbvBV]?matrix|array)\}(?:\{[lcr|]+\})?(?P<body>.*)\\end\{(?P=kind)\}", re.DOTALL
)
_NAME = re.compile(
    r"(?:\\[a-zA-Z]+|[a-zA-Z]{1,4})(?:_\{?[a-zA-Z0-9,\\]+\}?)?'*(?:\s*\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\))?"
)
_SEGMENT = (
    r"(?:\|?[A-Z]{1,5}(?:_\{?[A-Za-z0-9]+\}?)?'?\|?|\\overline\{[A-Z]{2}\}|(?:m\s*)?\\angle\s*[A-Z]{1,3}|"
    r"[A-Z]_\{[^{}]*\})"
)
_GEOMETRIC = re.compile(
    rf"{_SEGMENT}(?:\s*[:/]\s*{_SEGMENT})*|\\frac\s*\{{\s*{_SEGMENT}\s*\}}\s*\{{\s*{_SEGMENT}\s*\}}|P\s*\([^()=<>]*\)"
)
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*\}")
_SHORT_WORDS = frozenset("no on up us it is in at to of he me we go so do be by my an as if ok hi am pm".split())
_REALS = re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R)|\\R")
_ARITHMETIC = re.compile(r"[0-9.,\s]+(?:[-+*/][0-9.,\s]+)+")
MAX_PARTS = 200


@lru_cache(maxsize=4096)
def read_answer(text: str, comma: bool = False, letters: bool = False) -> Answer:
    """Return the structure of an answer. An answer that cannot be read as mathematics is a Text with the whole answer.

    comma    is True if `1000,99` can be a number with a decimal comma.
    letters  is True if a single letter after a number can be a unit.
    """
    cleaned = clean(text)
    return _read(cleaned, comma, letters, 0)


def _read(text: str, comma: bool, letters: bool, depth: int) -> Answer:
    text = text.strip()
    if depth > 6 or not text or len(text) > 4_000:
        return Text(text)
    if (amount := _amount(text, comma, letters, numbers_only=True)) is not None:
        return amount
    if _REALS.fullmatch(text):
        return _read("(-\\infty,\\infty)", comma, letters, depth + 1)
    if matrix := _matrix(text, letters, depth):
        return matrix
    if "\\pm" in text or "\\mp" in text:
        both = (text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+"))
        members = tuple(_read(_unsigned(one), comma, letters, depth + 1) for one in both)
        if not any(isinstance(member, Text) for member in members) and "=" not in text.partition("\\pm")[2]:
            name = members[0].name if isinstance(members[0], Relation) else ""
            return Parts(text, "", members) if not name or len(members) == 2 else Text(text)
    if parts := _bracketed(text, comma, letters, depth):
        return parts
    pieces = split_top(text, _SEPARATOR)
    if len(pieces) > 1:
        return _list(text, pieces, comma, letters, depth)
    if relation := _relation(text, comma, letters, depth):
        return relation
    pieces = split_top(text, re.compile(r"\\cup(?![a-zA-Z])"))
    if len(pieces) > 1:
        return Parts(text, "u", tuple(_read(piece, False, letters, depth + 1) for piece in pieces))
    return _amount(text, comma, letters) or Text(text)


def _unsigned(text: str) -> str:
    return re.sub(r"(^|[=(,{])\s*\+", r"\1", text)


def _amount(text: str, comma: bool, letters: bool, numbers_only: bool = False) -> Amount | None:
    number = read_number(text, comma)
    if number:
        return Amount(text, number, parse_formula(text), percent=number.percent)
    amount, unit = split_unit(text, letters)
    if unit and (number := read_number(amount, comma)):
        return Amount(text, number, parse_formula(amount), unit, number.percent)
    if numbers_only or _ARITHMETIC.fullmatch(text):
        return None
    percent = amount.endswith("%")
    tree = parse_formula(amount.removesuffix("%"))
    if tree is None and unit:
        amount, unit, percent = text, "", text.endswith("%")
        tree = parse_formula(text.removesuffix("%"))
    if tree is None or _is_word(amount) or ("," in amount and not re.search(r"[0-9],[0-9]{3}", amount)):
        return None
    if any(part == ("degree",) for part in walk(tree)):
        return None
    return Amount(text, None, tree, unit, percent)


def _is_word(text: str) -> bool:
    """Return True if the letters form a word, such as `yes` or `NO`, and not a product of variables, such as `xyz`."""
    return any(
        word.lower() in _SHORT_WORDS or (len(word) > 2 and re.search("[aeiou]", word.lower()))
        for word in (text.split() if re.fullmatch(r"[A-Za-z]+(?:[\s'-]+[A-Za-z]+)*", text) else ())
        if word.lower() not in FUNCTIONS and word not in ("pi", "sqrt", "inf", "infinity")
    )


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at separators outside brackets. A comma between groups of digits (`1,000`) is not a separator."""
    pieces, depth, start, at = [], 0, 0, 0
    while at < len(text):
        match = separator.match(text, at) if depth == 0 else None
        if match and not (match[0] == "," and _groups_digits(text, start, at)):
            pieces.append(text[start:at])
            at = start = match.end()
            continue
        if text.startswith(("\\{", "\\}"), at):
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        if text[at] == "\\" and at + 1 < len(text) and not text[at + 1].isalpha():
            at += 2
            continue
        depth += (text[at] in _OPEN) - (text[at] in _CLOSE)
        at += 1
    pieces.append(text[start:])
    return pieces


def _groups_digits(text: str, start: int, at: int) -> bool:
    """Return True if the comma at `at` groups the digits of a number, such as the second comma in `3630, 522,720`."""
    before = re.search(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})*$", text[start:at])
    return bool(before and re.match(r",[0-9]{3}(?![0-9])", text[at:]) and re.search(r"[^0-9,]", text))


def _bracketed(text: str, comma: bool, letters: bool, depth: int) -> Answer | None:
    """Read a tuple, an interval or a set whose brackets enclose the whole text."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner, brackets = text[2:-2], "{}"
    elif text[0] in "([" and text[-1] in ")]":
        inner, brackets = text[1:-1], text[0] + text[-1]
    else:
        return None
    if not _balanced(inner):
        return None
    pieces = split_top(inner, re.compile(r"[,;]"))
    if brackets == "{}":
        condition = re.fullmatch(r"\s*\(?([a-zA-Z])(?:\s*\\in\s*[^|:]*)?\s*[|:](.*)", inner, re.DOTALL)
        if condition:
            relation = _read(condition[2], comma, letters, depth + 1)
            return relation if isinstance(relation, Relation) else Text(text)
    elif len(pieces) < 2:
        return None
    members = tuple(_read(piece, False, letters, depth + 1) for piece in pieces[:MAX_PARTS])
    return Parts(text, brackets, members)


def _balanced(text: str) -> bool:
    """Return True if every closing bracket follows its opening bracket. For the text `1) + (2`, the result is False."""
    depth, plain = 0, re.sub(r"\\[^a-zA-Z]", "", text)
    for letter in plain:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _matrix(text: str, letters: bool, depth: int) -> Answer | None:
    match = _MATRIX.fullmatch(re.sub(r"^[(\[]\s*(?=\\begin\{(?:array|matrix))|(?<=\})\s*[)\]]$", "", text).strip())
    if not match or "\\begin" in match["body"]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match["body"].replace("\\hline", "")) if row.strip()]
    kind = "vmatrix" if match["kind"] in ("vmatrix", "Vmatrix") else "matrix"
    members = tuple(
        Parts(row, "row", tuple(_read(cell, False, letters, depth + 1) for cell in row.split("&"))) for row in rows
    )
    return Parts(text, kind, members)


def _list(text: str, pieces: Sequence[str], comma: bool, letters: bool, depth: int) -> Answer:
    """Read values with commas between them. In `x = 1, 2`, the name `x` belongs to all values."""
    pieces = [piece for piece in pieces if piece.strip()]
    if len(pieces) > MAX_PARTS or not pieces:
        return Text(text)
    if len(pieces) == 1:
        return _read(pieces[0], comma, letters, depth + 1)
    members = tuple(_read(piece, False, letters, depth + 1) for piece in pieces)
    first = members[0]
    named = isinstance(first, Relation) and first.name and first.operators in (("=",), ("in",))
    if named and not any(isinstance(member, (Relation, Text)) for member in members[1:]):
        assert isinstance(first, Relation)
        rest = (Relation(member.raw, ("=",), (first.members[0], member), first.name) for member in members[1:])
        return Parts(text, "", (first, *rest))
    if any(isinstance(member, Text) for member in members) and not all(
        isinstance(member, Text) and plain_words(member.raw) for member in members
    ):
        return Text(text)
    return Parts(text, "", members)


def _relation(text: str, comma: bool, letters: bool, depth: int) -> Answer | None:
    pieces = split_top(text, _RELATION)
    if len(pieces) < 2 or len(pieces) > 8 or not all(piece.strip() for piece in pieces):
        return None
    operators = _operators(text, pieces)
    name = name_of(pieces[0])
    members = tuple(
        _read(piece, comma and len(pieces) == 2, letters, depth + 1) if place or not name else Text(pieces[0].strip())
        for place, piece in enumerate(pieces)
    )
    if name and operators[0] not in ("=", "in", "~"):
        members = (_read(pieces[0], False, letters, depth + 1), *members[1:])
    if not name and any(isinstance(member, Text) for member in members):
        return None
    return Relation(text, tuple(operators), members, name)


def _operators(text: str, pieces: Sequence[str]) -> list[str]:
    found, at = [], 0
    for piece in pieces[:-1]:
        at += len(piece)
        match = _RELATION.match(text, at)
        assert match
        found.append(_OPERATORS[match[0]])
        at = match.end()
    return found


def name_of(text: str) -> str:
    """Return the name on the left side of an equation, such as `x`, `f(x)` or `V_{max}`, or "" for a formula."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()
    plain = re.sub(r"\s+", "", plain) if not re.search(r"[a-zA-Z]{3}", plain) else plain
    if re.fullmatch(r"\(?[a-zA-Z](?:_\{?\w+\}?)?(?:\s*,\s*[a-zA-Z](?:_\{?\w+\}?)?)+\)?", plain):
        return plain.strip("()").replace(" ", "")
    if _GEOMETRIC.fullmatch(plain) or _DERIVATIVE.fullmatch(plain):
        return re.sub(r"[{}\s]", "", plain)
    match = _NAME.fullmatch(plain)
    if not match or re.match(r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|sqrt|frac|int|sum|lim|pi|infty)(?![a-zA-Z])", plain):
        return ""
    return re.sub(r"[{}\s]", "", plain)
