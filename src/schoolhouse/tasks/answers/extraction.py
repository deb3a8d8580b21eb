r"""Find the final answer that a completion marks.

boxed         the content of \boxed{...} or <answer>...</answer>.
answer_colon  the text after `Answer:` (or `The final answer is:`) in a line.
hash          the text after the last `####`, up to the end of the line, as in GSM8K.
last_number   the last number of the text.
whole         the whole text.
auto          the first of boxed, hash, answer_colon and whole that the text has.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Hashable
from itertools import pairwise
from typing import Literal

from schoolhouse.tasks.answers.strict import normal_form
from schoolhouse.types import Completion

Extraction = Literal["boxed", "answer_colon", "hash", "last_number", "whole", "auto"]
"""How the final answer is marked."""

SEVERAL = "more than one final answer"

_MARKS = re.compile(r"\\boxed[ \t]*\{|\\.|[{}]", re.DOTALL)
_BLANK = re.compile(
    r"(?:\\(?:phantom|hspace|vspace)\*?\{[^{}]*\}|\\(?:square|Box|quad|qquad|dots|ldots|[ ,;:!])|[\s~])*"
)
_COLON = re.compile(
    r"^[^\w\n]*(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?\s*\**\s*[:\uff1a]\s*(?P<answer>\S.*)$", re.I | re.M
)
_HASH = re.compile(r"####[ \t]*(?P<answer>[^\n]*\S)")
_LAST_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\\?\$[ \t]*)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?"
    r"|[0-9]+\s?/\s?[0-9]+|[0-9]*\.?[0-9]+)"
    r"(?:[eE][-+]?[0-9]+)?(?:\s?\\?%)?(?![\w]*[0-9])"
)


_BETWEEN = re.compile(r"(?:\\\)|\\\(|\\[,; ]|\\q?quad|[$\s*]|[,;]|\\text\s*\{\s*and\s*\}|\band\b)*")


def extract_list(completion: Completion) -> str | None:
    r"""Return the values of several \boxed{...} with commas or `and` between them, as one list.

    Returns None if the completion does not have several \boxed{...} with commas or `and` between them.
    """
    text = completion.answer
    boxes = _boxes(text)
    if len(boxes) < 2 or _tags(text):
        return None
    for (_, end), (start, _) in pairwise(boxes):
        between = text[end + 1 : text.rindex("\\boxed", end, start)]
        if not _BETWEEN.fullmatch(between) or not re.search(r"[,;]|and", between):
            return None
    return ", ".join(_clean(text[start:end]) for start, end in boxes)


def extract_answer(completion: Completion, extraction: Extraction = "boxed") -> tuple[str | None, str]:
    r"""Return the final answer of a completion, or None and the reason why the completion has no final answer.

    With `boxed`, several equal answers (`5`, `5.0`) count as one answer. Different answers count as no answer, because
    a completion must not guess. Inside <answer>, the content of \boxed{...} is the answer. A mark without its closing
    brace or tag marks no answer. All modes except `boxed` use the last answer.
    """
    text = completion.answer
    if extraction == "boxed":
        return _marked(completion)
    if extraction == "auto":
        answer, reason = _marked(completion)
        if answer is not None or not reason.startswith("no final answer"):
            return answer, reason
        matches = [match["answer"] for pattern in (_HASH, _COLON) for match in list(pattern.finditer(text))[-1:]]
        found = matches[0] if matches else text
    elif extraction == "whole":
        found = text
    elif extraction == "last_number":
        numbers = _LAST_NUMBER.findall(text)
        found = numbers[-1] if numbers else ""
    else:
        lines = list((_HASH if extraction == "hash" else _COLON).finditer(text))
        found = lines[-1]["answer"] if lines else ""
    found = _without_marks(found)
    return (found, "") if found else (None, "no final answer")


def _without_marks(text: str) -> str:
    r"""Remove the stars of bold text and \boxed{} around an answer."""
    text = re.sub(r"^\*+|\*+$", "", text.strip()).strip()
    boxes = _boxes(text)
    return text[slice(*boxes[-1])].strip() if boxes else text


def _marked(completion: Completion) -> tuple[str | None, str]:
    text = completion.answer
    boxes, tags = _boxes(text), _tags(text)
    starts = [start for start, _ in boxes]
    tags = [(start, end) for start, end in tags if bisect_left(starts, start) == bisect_left(starts, end)]
    marked = [_clean(text[start:end]) for start, end in sorted(boxes + tags)]
    if not marked:
        return None, "no final answer" if completion.complete else "no final answer: the completion was cut off"
    filled = [answer for answer in marked[:-1] if not _BLANK.fullmatch(answer)]  # a quoted "put it in \\boxed{}"
    marked = [*filled, marked[-1]]
    last = marked[-1]
    if any(normal_form(other) != normal_form(last) for other in marked[:-1]):
        return None, SEVERAL
    return (last, "") if last else (None, "the final answer is empty")


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Return the spans of the contents of the outermost \boxed{...}. Escaped braces are ignored."""
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
    """Return the spans of the contents of <answer>...</answer>. Each </answer> closes the last <answer> before it."""
    spans, at = [], 0
    while (end := text.find("</answer>", at)) >= 0:
        start = text.rfind("<answer>", at, end)
        if start >= 0:
            spans.append((start + len("<answer>"), end))
        at = end + len("</answer>")
    return spans


def _clean(text: str) -> str:
    r"""Remove spaces around a text, and a second \boxed{} around the whole text."""
    text = text.strip()
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    boxes = _boxes(text) if text.startswith("\\boxed") else []
    return text[slice(*boxes[0])].strip() if boxes and boxes[0][1] == len(text) - 1 else text


def normalized_answer(completion: Completion, extraction: Extraction = "boxed") -> Hashable | None:
    """Return the final answer in a normal form, so that equal answers can be counted. Returns None if there is no final
    answer."""
    answer, _ = extract_answer(completion, extraction)
    return None if answer is None else normal_form(answer)
