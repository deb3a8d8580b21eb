"""The types of request fields, and the error messages for invalid fields.

The server treats a field whose value is `null` like a missing field. The server never converts texts, booleans and
numbers into each other. For example, the text `"5"` is no valid number. The validation of a list stops at the first
mistake, so that an invalid request takes little time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError, from_json

from schoolhouse.config import suggest
from schoolhouse.types import SchoolError

_MAX_SHOWN = 60  # characters of a wrong value in a message
MAX_BODY_VALUES = 200_000
"""The maximum number of values in a body. Reading a body with this number of values takes about 10 ms."""


def _whole(value: Any) -> Any:
    """Convert a number such as 16.0 to 16, because some clients send whole numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""The validator of whole numbers, which must stand after the limits of a number to keep them in the OpenAPI schema."""
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Strict()]


class RequestModel(BaseModel):
    """The base class of request bodies and of their parts. A field that is `null` is treated like a missing field.

    The server refuses unknown fields. `UNSUPPORTED` contains fields of OpenAI's API that the server refuses, with the
    text of the error. An unsupported field is allowed if its value is an empty list, object or text. `KINDS` lists the
    allowed values of the field `type`. The field `type` is checked first, because the type determines which other
    fields are allowed.
    """

    model_config = ConfigDict(extra="forbid")
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    KINDS: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if cls.KINDS and body.get("type") not in (None, *cls.KINDS):
            text = f"{shown(body['type'])} is not supported; send {' or '.join(cls.KINDS)}"
            raise field_error("type", text)
        kept = {}
        for name, value in body.items():
            if value is None or (name in cls.UNSUPPORTED and value in ([], {}, "")):
                continue
            if name in cls.UNSUPPORTED:
                raise field_error(name, cls.UNSUPPORTED[name])
            if name not in cls.model_fields:
                known = suggest(name[:_MAX_SHOWN], list(cls.model_fields))
                advice = f"this field is unknown to the server; leave this field out{known}"
                raise field_error(name, advice)
            kept[name] = value
        return kept


def field_error(field: str, text: str) -> PydanticCustomError:
    """Make the error for a field that the server refuses. `field` is the field's path inside the checked object."""
    return PydanticCustomError("unsupported_field", "{advice}", {"field": field, "advice": text})


def only(*allowed: Any, advice: str) -> BeforeValidator:
    """Make a validator that accepts only the given values, for a field that has no effect."""

    def check(value: Any) -> Any:
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
            raise PydanticCustomError("not_supported", "{text}", {"text": f"{shown(value)} is not supported; {advice}"})
        return value

    choices, literal = tuple(value for value in allowed if isinstance(value, int | str)), cast(Any, Literal)
    return BeforeValidator(check, json_schema_input_type=literal[choices]) if choices else BeforeValidator(check)


class BodyError(SchoolError):
    """The error for a body that cannot be read as JSON."""


def read_json(body: bytes) -> Any:
    """Read a body as JSON. Reading takes at most about 20 ms, because bodies with too many values are refused first.

    Raises BodyError if the body has too many values, if the body is not JSON in UTF-8, or if a text contains a lone
    surrogate. A lone surrogate is half of a character, and UTF-8 cannot encode it.
    """
    if (cost := _reading_cost(body)) > MAX_BODY_VALUES:
        raise BodyError(
            f"the body has about {cost:,} values, but the limit is {MAX_BODY_VALUES:,} values (an object counts as "
            "several values); send a smaller request"
        )
    try:
        return from_json(body)
    except ValueError as error:
        if "surrogate" in str(error) or "hex escape" in str(error):
            with suppress(ValueError):
                json.loads(body)  # this parser accepts half of a character
                text = "a string contains a lone surrogate (half of a character); send valid Unicode text"
                raise BodyError(text) from None
        raise BodyError(f"the body is not valid JSON: {error}") from None


def _reading_cost(body: bytes) -> int:
    """Estimate the time for reading a JSON text. The unit of the estimate is the time for reading one number.

    The estimate itself takes about 5 ms for a text of 4 MiB.
    """
    return body.count(b",") + body.count(b"[") + 5 * body.count(b"{") + 2 * body.count(b'":')


# --- messages


def shown(value: Any) -> str:
    """Return a short description of an invalid value for an error message."""
    if isinstance(value, list):
        return f"a list of {len(value):,} entries"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"`{value}`" if len(value) <= _MAX_SHOWN else f"a text of {len(value):,} characters"
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else f"a number of {len(text):,} digits"


def field_path(location: Sequence[str | int]) -> str:
    """Return the path of a field, such as `messages[0].content[1].type`.

    A name in round brackets is not part of the path, because such a name is an alternative of a union type.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "body" and not part.startswith("("):
            path += f".{part}" if path else part
    return path


_TYPES = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
}
_LIMITS: dict[str, Callable[[Mapping[str, Any], Any], str]] = {
    "greater_than_equal": lambda limit, value: f"must be at least {_number(limit['ge'])}, but is {shown(value)}",
    "greater_than": lambda limit, value: f"must be more than {_number(limit['gt'])}, but is {shown(value)}",
    "less_than_equal": lambda limit, value: f"must be at most {_number(limit['le'])}, but is {shown(value)}",
    "too_long": lambda limit, value: f"has {_length(value)} entries, but the limit is {limit['max_length']:,}",
    "too_short": lambda limit, value: f"is {shown(value)}, but must have at least {limit['min_length']:,}",
    "string_too_long": lambda limit, value: (
        f"has {_length(value)} characters, but the limit is {limit['max_length']:,}"
    ),
    "string_too_short": lambda limit, value: "is empty; send a text",
    "literal_error": lambda limit, value: f"{shown(value)} is not supported; send {_plain(limit['expected'])}",
    "finite_number": lambda limit, value: f"must be a finite number, but is {shown(value)}",
    "missing": lambda limit, value: "this field is missing; add it",
    "unsupported_field": lambda limit, value: limit["advice"],
}


def error_text(error: Mapping[str, Any]) -> tuple[str, str]:
    """Return the path of the invalid field, and an error message that begins with the path.

    If the whole request is invalid, the path is empty.
    """
    kind, limits, value = error["type"], error.get("ctx", {}), error.get("input")
    location = [*error["loc"], limits["field"]] if kind == "unsupported_field" else error["loc"]
    path = field_path(location)
    if not path and kind == "missing":
        return "", "the body is empty; send a JSON object"
    if kind in _LIMITS:
        text = _LIMITS[kind](limits, value)
    elif (name := kind.partition("_")[0]) in _TYPES and kind.rpartition("_")[2] in ("type", "parsing", "from", "size"):
        text = f"must be {_TYPES[name]}, but is {shown(value)}"
    elif kind == "value_error":
        text = error["msg"].partition(", ")[2]
    else:
        text = error["msg"]
    return path, f"{path or 'the request'}: {text}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _length(value: Any) -> str:
    return f"{len(value):,}" if hasattr(value, "__len__") else "too many"


def _plain(expected: str) -> str:
    """Remove the quotation marks from a list of allowed values, such as `'a' or 'b'`."""
    return expected.replace("'", "")
