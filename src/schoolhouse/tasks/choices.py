"""Multiple choice: write the choices of a row below its question, and find the letter of the correct choice."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from schoolhouse.data.chats import BadRow, shown
from schoolhouse.data.shapes import ONE_BASED, Shape, normalized, value_at

_LABEL = re.compile(r"\s*\(?([A-Za-z])\s*[.):]\s*")
_LETTER = re.compile(r"\(?([A-Za-z])[.)]?")
_IN_ONE_TEXT = re.compile(r"(?:^|[,;]\s*|\s)([a-z])\s*\)\s*|(?:^|\n)\s*\(?([A-Z])[.):]\s*")


def render_choices(question: str, row: Mapping[str, Any], shape: Shape) -> tuple[str, str]:
    """Return the question with its choices (`A. ...`, one choice per line), and the letter of the correct choice.

    If the correct choice is in a separate column, a hash of the question decides the place of the correct choice in the
    list.
    Raises BadRow if the choices cannot be read, or if the row has no correct choice.
    """
    keys = shape.roles["choices"]
    labels, texts, correct = _choices(row, keys)
    if len(texts) < 2 or len(texts) > len(ascii_uppercase):
        raise BadRow(f"`{keys[0]}` has {len(texts)} choices; it must have 2 to {len(ascii_uppercase)}")
    if shape.roles.get("wrong"):
        place = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest()) % len(texts)
        texts = [*texts[1 : place + 1], texts[0], *texts[place + 1 :]]
        correct = place
    if correct is None:
        correct = _correct_place(row, shape.key("correct"), labels, texts, normalized(keys[0]) in ONE_BASED)
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    return "\n".join([question, "", *lines]), ascii_uppercase[correct]


def _choices(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[list[str], list[str], int | None]:
    """Return the labels of the choices, the texts of the choices, and the index of the choice that is marked as
    correct.

    A mark in the row says that a choice is correct. The index is None if no choice has a mark.
    """
    if len(keys) > 1:
        values = [value_at(row, key) for key in keys]
        flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
        return [], _texts(flat, keys[0]), None
    value = _parsed(value_at(row, keys[0]))
    if isinstance(value, str) and len(parts := _IN_ONE_TEXT.split(value)) > 6:  # `a ) 38 , b ) 27`, or lines `A. 38`
        labels = [lower or upper for lower, upper in zip(parts[1::3], parts[2::3], strict=True)]
        return labels, _texts([part.strip(" ,;\n") for part in parts[3::3]], keys[0]), None
    if isinstance(value, Mapping):
        marks = value.get("labels")
        inner = value.get("text") or value.get("choices") or value.get("texts")
        if isinstance(inner, list):
            if isinstance(marks, list) and set(marks) <= {0, 1} and 1 in marks:
                return [], _texts(inner, keys[0]), marks.index(1)
            labels = value.get("label") or marks or []
            return [str(label) for label in labels], _texts(inner, keys[0]), None
        given = {str(label): text for label, text in value.items() if text is not None}
        return list(given), _texts(list(given.values()), keys[0]), None
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        labels = [str(next((each[key] for key in ("label", "key", "id") if key in each), "")) for each in value]
        texts = [next((each[key] for key in ("text", "value", "content") if key in each), None) for each in value]
        return (labels if all(labels) else []), _texts(texts, keys[0]), None
    if not isinstance(value, list):
        raise BadRow(f"`{keys[0]}` is {shown(value)}; it must be a list of choices")
    texts = _texts(value, keys[0])
    own = [match[1].upper() if (match := _LABEL.match(text)) else "" for text in texts]
    if own == list(ascii_uppercase[: len(texts)]):
        return own, [_LABEL.sub("", text, count=1) for text in texts], None
    return [], texts, None


def _parsed(value: Any) -> Any:
    """Parse a list or a mapping that a CSV file stores as text. Returns any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def _texts(values: Sequence[Any], key: str) -> list[str]:
    texts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise BadRow(f"a choice in `{key}` is {shown(value)}; it must be text or a number")
        texts.append(str(value).strip())
    return texts


def _correct_place(
    row: Mapping[str, Any], key: str, labels: Sequence[str], texts: Sequence[str], one_based: bool
) -> int:
    """Return the index of the correct choice, which the row gives as a number, a letter, a label or a text."""
    value = value_at(row, key) if key else None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if value is None or (isinstance(value, str) and not value.strip()) or isinstance(value, bool | list | Mapping):
        known = f"`{key}` is {shown(value)}" if key else "no column says which choice is correct"
        raise BadRow(f"{known}; give the letter or the number of the correct choice (`?correct=KEY`), or drop the row")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    letter = _LETTER.fullmatch(text)
    places: list[int] = []
    if isinstance(value, str):
        places = [at for at, choice in enumerate(texts) if choice == text]
    upper = [label.strip("() .").upper() for label in labels]
    if text.upper() in upper or (letter and letter[1].upper() in upper):
        places = [upper.index(text.upper() if text.upper() in upper else letter[1].upper() if letter else "")]
    elif re.fullmatch(r"-?[0-9]{1,9}", text) and not (places and not 0 <= int(text) - one_based < len(texts)):
        number = int(text) - one_based
        if places and places != [number]:
            raise BadRow(f"`{key}` is {text}, which can be the number or the text of a choice; give the letter")
        places = [number]
    elif letter and not places:
        places = [ascii_uppercase.index(letter[1].upper())]
    if len(places) != 1 or not 0 <= places[0] < len(texts):
        raise BadRow(f"`{key}` is {shown(value)}, but it must name exactly one of the {len(texts)} choices")
    return places[0]
