"""Read the accepted final answers of a row in the forms of many data sets, and read the text of a cell."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from schoolhouse.data.chats import BadRow, shown
from schoolhouse.data.shapes import ALIASES, Shape, normalized, value_at
from schoolhouse.tasks.answers.extraction import extract_answer
from schoolhouse.types import Completion

MAX_REFERENCE_WORDS = 40
"""Words of a reference. A longer text is a worked answer, which no completion repeats word by word."""

_NOT_ANSWERS = ("proof", "notfound")  # written by NuminaMath-1.5 where a problem has no final answer
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_STATED = re.compile(r"(?:the\s+)?(?:final\s+)?answer(?:\s+is|\s*:)\s*:?\s*(\S.*?)\.?", re.IGNORECASE)
_UNIT_IN_BRACKETS = re.compile(r"(-?[0-9][0-9.,/:]*)\s*\([^()]*\)")
_LISTS = ("answers", "possible_answers", "ground_truth", *ALIASES)
"""Columns whose text can be the JSON of several answers."""


def parse_answers(row: Mapping[str, Any], shape: Shape) -> tuple[tuple[str, ...], str, str]:
    """Return the accepted final answers of a row, the worked solution and, if the row has no answer, the reason why
    there is no answer.

    Raises BadRow if a value is NaN. All other mistakes are returned as a reason and not raised, because some reward
    functions need no reference.
    """
    key, solution_key = shape.key("answer"), shape.key("solution")
    if not key:
        return (), "has no reference answer", ""
    value, solution = value_at(row, key), optional_text(row, solution_key)
    refuse_nan(value, key)
    try:
        if isinstance(value, str) and key == solution_key:
            return (_last_boxed(solution, key),), "", solution
        if normalized(key) == "solution" and isinstance(value, str):  # `prompt` and `solution`, as in TRL's examples
            return _answer_in_solution(text_of(value, key))
        if isinstance(value, str) and "####" in value and normalized(key) == "answer":
            worked, _, value = value.rpartition("####")
            if not value.strip():
                raise BadRow(f"nothing follows `####` in `{key}`; write the final answer there")
            solution = _CALCULATOR.sub("", worked).strip() or solution
        elif isinstance(value, str) and "\\boxed" in value:
            boxed = _last_boxed(value, key)
            bare = value.strip(" $\n") == f"\\boxed{{{boxed}}}"
            solution, value = solution or ("" if bare else value.strip()), boxed
        references = _references(row, value, key)
    except BadRow as error:
        return (), str(error), ""
    return references, "", "" if solution.strip() in references else solution


def _answer_in_solution(solution: str) -> tuple[tuple[str, ...], str, str]:
    if "\\boxed" in solution:
        return (_last_boxed(solution, "solution"),), "", solution.strip()
    if "\n" in solution.strip() or len(solution.split()) > MAX_REFERENCE_WORDS:
        raise BadRow("`solution` has no final answer; put it in \\boxed{}, or give it as `answer`")
    return (_checked_reference(solution.strip(), "solution"),), "", ""


def _references(row: Mapping[str, Any], value: Any, key: str) -> tuple[str, ...]:
    """Return every accepted spelling of the answer, in the order of the row."""
    if isinstance(value, bool):
        return ("yes", "true") if value else ("no", "false")
    if isinstance(value, str) and value.lstrip().startswith("[") and normalized(key).rpartition(".")[2] in _LISTS:
        value = _list_in_text(value)
    if isinstance(value, Mapping):
        value = _inner_answers(value, key)
    if isinstance(value, list):
        if not value:
            raise BadRow(f"`{key}` is empty; write a value, or delete the row")
        if all(isinstance(each, Mapping) and isinstance(each.get("text"), str) for each in value):
            value = [each["text"] for each in value]  # as in NarrativeQA
        if len(value) > 1 and not all(isinstance(each, str) for each in value):
            raise BadRow(
                f"`{key}` is {shown(value)}; write one answer as text, or a list of texts that are all accepted"
            )
        if len(value) > 1 and row.get("is_multiple_answer"):
            value = [", ".join(value)]
    else:
        value = [value]
    texts = [_checked_reference(_without_unit(row, text_of(each, key).strip()), key) for each in value]
    for name in ALIASES:
        extra = row.get(name)
        extra = _list_in_text(extra) if isinstance(extra, str) else extra
        texts += (
            [each.strip() for each in extra if isinstance(each, str) and each.strip()]
            if isinstance(extra, list)
            else []
        )
    return tuple(dict.fromkeys(texts))


def _inner_answers(value: Mapping[str, Any], key: str) -> Any:
    """Return the answers in a mapping, as in SQuAD (`text`), DROP (`spans`) and TriviaQA (`value`, `aliases`)."""
    for inner in ("text", "spans"):
        if isinstance(value.get(inner), list):
            return value[inner]
    if isinstance(value.get("value"), str):
        return [value["value"], *(alias for alias in value.get("aliases") or () if isinstance(alias, str))]
    raise BadRow(
        f"`{key}` is {shown(value)}, a mapping, but an answer must be text; name the key of the answer "
        f"(`?answer={key}.KEY`), or write your own reward function"
    )


def _checked_reference(text: str, key: str) -> str:
    if stated := _STATED.fullmatch(text):
        text = stated[1]
    if text.casefold() in _NOT_ANSWERS:
        raise BadRow(f"`{key}` is `{text}`, which says that there is no final answer; drop the row")
    if text[:1] in "{[" and isinstance(_json_or_none(text), dict | list) and re.search(r'"\w+":', text):
        raise BadRow(f"`{key}` is {text[:40]}; JSON cannot be compared as an answer; write your own reward function")
    words = len(text.split())
    if words > MAX_REFERENCE_WORDS and len(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", text)) > MAX_REFERENCE_WORDS // 2:
        raise BadRow(
            f"`{key}` has {words} words, which is too long for a final answer; to train on the text as a reply, add "
            f"`?completion={key}`; to grade, write the final answer after `####`"
        )
    return text


def _without_unit(row: Mapping[str, Any], text: str) -> str:
    """Remove the unit from an answer in a row of ASDiv: `9 (apples)` becomes `9`."""
    named = _UNIT_IN_BRACKETS.fullmatch(text) if {"body", "formula"} <= row.keys() else None
    return named[1] if named else text


def _last_boxed(solution: str, key: str) -> str:
    r"""Return the content of the last \boxed{...} of a MATH solution. Some solutions have no braces (`$\boxed 2$`)."""
    last = solution[max(solution.rfind("\\boxed"), 0) :]
    if bare := re.match(r"\\boxed\s+([^\s${}\\]+)", last):
        return bare[1]
    answer, reason = extract_answer(Completion(None, last))
    if answer is None:
        raise BadRow(f"`{key}` has {reason}; put it in \\boxed{{}}, or give it as `answer`")
    return answer


# ---- cells


def text_of(value: Any, key: str) -> str:
    """Return a cell as text. Raises BadRow if the value is blank text or NaN, or if the value is neither text nor a
    number."""
    refuse_nan(value, key)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # 142.0, as a table writes 142 in a column with empty cells
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is {shown(value)}; it must be text or a number")
    if not value.strip():
        raise BadRow(f"`{key}` is empty; write a value, or delete the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"`{key}` has a lone surrogate (half of a character); remove this half character") from None
    return value


def refuse_nan(value: Any, key: str) -> None:
    """Raise BadRow for a number that is not finite, and for a text such as `nan`, which means a missing value."""
    missing = isinstance(value, float | Decimal) and not math.isfinite(value)
    if missing or (isinstance(value, str) and value.strip() in ("nan", "NaN", "<NA>")):
        raise BadRow(
            f"`{key}` is {str(value).strip()}, but it must be text or a finite number; write a value, or delete the row"
        )


def optional_text(row: Mapping[str, Any], key: str) -> str:
    """Return the text in a column, or the first text of a list. Returns an empty text if the column has no text."""
    value = value_at(row, key) if key else ""
    value = value[0] if isinstance(value, list) and value else value
    return value.strip() if isinstance(value, str) else ""


def _list_in_text(text: str) -> Any:
    """Parse a list of texts that a CSV file stores as JSON or as Python code. Returns any other text unchanged."""
    found = _json_or_none(text)
    if found is None:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
    return found if isinstance(found, list) and found and all(isinstance(each, str) for each in found) else text


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
