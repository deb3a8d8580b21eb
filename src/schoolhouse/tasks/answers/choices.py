"""Read the choice that an answer names: `B`, `(B)`, `B)`, `B. Paris`, `\\textbf{(B)} 5` or `Option B`."""

from __future__ import annotations

import re
from typing import NamedTuple

from schoolhouse.tasks.answers.spelling import clean

_BARE = re.compile(r"(?:(?:option|choice|answer)\s+)?[(\[]?\s*(?P<letter>[A-Ja-j])\s*[)\].:]?", re.IGNORECASE)
_WITH_TEXT = re.compile(
    r"(?:(?:option|choice)\s+)?(?P<open>[(\[]?)\s*(?P<letter>[A-J])\s*(?P<close>[)\]]?[.:]?)\s*(?P<text>\S.*)"
)
_ANOTHER = re.compile(r"(?<![A-Za-z])[(\[]?[A-J][)\].:](?:\s|$)|\b(?:or|and)\s+[(\[]?[A-J]\b")


class Choice(NamedTuple):
    """The letter of a choice, and the text after the letter. `framed` is True if the letter is in brackets."""

    letter: str
    text: str = ""
    framed: bool = False


def read_choice(answer: str) -> Choice | None:
    """Return the choice that an answer names. Returns None if the answer names no choice or two choices."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", clean(answer)).strip()
    text = (
        re.sub(r"^\{?\\(?:textbf|mathbf|mathrm)?\s*\{?(\(?[A-J]\)?)\}?\}?", r"\1", text) if text[:1] == "\\" else text
    )
    if match := _BARE.fullmatch(text):
        return Choice(match["letter"].upper(), framed="(" in text)
    match = _WITH_TEXT.fullmatch(text)
    if not match or not match["close"] or (match["open"] and match["close"][0] not in ")]"):
        return None
    if match["close"] in (".", ":") and not re.match(r".*[.:]\s", text[: match.start("text")]):
        return None
    if _ANOTHER.search(match["text"]):
        return None
    return Choice(match["letter"], match["text"], bool(match["open"]))


def choice_fault(candidate: str, reference: Choice) -> str | None:
    """Return the reason why a candidate names another choice than the reference, or "" if both name the same choice.

    Returns None if the candidate names no choice.
    """
    choice = read_choice(candidate)
    if choice is None:
        return None
    return "" if choice.letter == reference.letter else "another choice"
