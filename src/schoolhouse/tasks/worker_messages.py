"""The messages that a worker process sends to its parent process: one line of JSON for each message.

A worker runs code that users or models wrote. For safety, the parent process reads only JSON of limited size, and never
unpickles bytes from a worker. A worker unpickles the cases that its parent process sends.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from schoolhouse.types import Verdict

MAX_LINE_BYTES = 64 << 10
"""The maximum size of a worker's message, in bytes."""

MAX_REASON_CHARS = 500
MAX_TRACE_CHARS = 2_000
MAX_PARTS = 64
"""The maximum number of parts of one verdict."""
MAX_PART_NAME_CHARS = 100


class BadMessageError(Exception):
    """The error that a worker sent bytes that are not a valid message."""


def send_message(descriptor: int, **fields: Any) -> None:
    """Write one message to a pipe. The numbers of the message must be finite."""
    line = memoryview(encoded(fields))
    while line:
        line = line[os.write(descriptor, line) :]


def encoded(fields: Mapping[str, Any]) -> bytes:
    """Return a message as a line of JSON. Each character needs at most 6 bytes.

    A lone surrogate (half of a character) becomes a question mark, because files and terminals cannot show it.
    """
    return (json.dumps(fields, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "replace")


class MessageReader:
    """The reading end of a worker's pipe. Reading never waits for the rest of a message."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self._buffer = descriptor, b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that have arrived, and True if the worker has closed its end.

        Raises BadMessageError if a message is longer than MAX_LINE_BYTES, or is not a JSON object.
        """
        closed = False
        try:
            data = os.read(self._descriptor, MAX_LINE_BYTES)
            closed = not data
        except BlockingIOError:
            data = b""
        except OSError:
            data, closed = b"", True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if max(map(len, [*lines, self._buffer])) > MAX_LINE_BYTES:
            raise BadMessageError(f"a message has more than {MAX_LINE_BYTES:,} bytes")
        return [_parse(line) for line in lines], closed


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"a message is not JSON ({str(error)[:60]}): {line[:40]!r}") from error
    if not isinstance(message, dict):
        raise BadMessageError(f"a message is not a JSON object: {line[:40]!r}")
    return message


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def verdict_fields(verdict: Verdict, place: str) -> dict[str, Any]:
    """Return the message fields for a verdict. `place` is the file and line of the verifier.

    A verdict with values that are not finite numbers is replaced by a verdict with a reason and without a reward.
    """
    try:
        reward = None if verdict.reward is None else _number(verdict.reward)
        parts = {str(name): _number(value) for name, value in verdict.parts.items()}
    except (TypeError, ValueError, OverflowError) as error:
        return {"reward": None, "reason": f"{place}: the verdict is not made of numbers: {error}"[:MAX_REASON_CHARS]}
    if len(parts) > MAX_PARTS or any(len(name) > MAX_PART_NAME_CHARS for name in parts):
        reason = (
            f"{place}: the verdict has {len(parts)} parts; at most {MAX_PARTS} parts are allowed, and a name of a part "
            f"has at most {MAX_PART_NAME_CHARS} characters"
        )
        return {"reward": None, "reason": reason[:MAX_REASON_CHARS]}
    return {"reward": reward, "reason": str(verdict.reason)[:MAX_REASON_CHARS], "parts": parts}


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def verdict_of(message: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a message. Raises BadMessageError if a field has a wrong type."""
    reward, reason, parts = message.get("reward"), message.get("reason"), message.get("parts", {})
    numbers = [reward] if reward is not None else []
    if not isinstance(reason, str) or not isinstance(parts, dict):
        raise BadMessageError("a message is not a verdict")
    if any(type(number) not in (int, float) or not math.isfinite(number) for number in [*numbers, *parts.values()]):
        raise BadMessageError("a verdict has a value that is not a number")
    if reward is None and not reason:
        raise BadMessageError("a verdict has neither a reward nor a reason")
    return Verdict(
        None if reward is None else float(reward),
        reason[:MAX_REASON_CHARS],
        {name[:MAX_PART_NAME_CHARS]: float(value) for name, value in list(parts.items())[:MAX_PARTS]},
    )
