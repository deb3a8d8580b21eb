"""Messages of a worker are JSON of a limited size. Everything else is refused, and nothing is unpickled."""

import json
import os
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.worker_messages import (
    MAX_LINE_BYTES,
    MAX_PARTS,
    MAX_TRACE_CHARS,
    BadMessageError,
    MessageReader,
    encoded,
    send_message,
    verdict_fields,
    verdict_of,
)
from schoolhouse.types import Verdict


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_messages_arrive_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    send_message(writer, ready=True)
    send_message(writer, case=1, reason="\ud800 ü\n")
    assert MessageReader(reader).read() == ([{"ready": True}, {"case": 1, "reason": "? ü\n"}], False)


def test_a_half_message_is_not_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    messages = MessageReader(reader)
    os.write(writer, b'{"case": ')
    assert messages.read() == ([], False)
    os.write(writer, b"3}\n")
    assert messages.read() == ([{"case": 3}], False)


def test_a_closed_pipe_is_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    send_message(writer, done=True)
    own = os.dup(reader)
    os.close(writer)
    messages = MessageReader(own)
    assert [messages.read(), messages.read()] == [([{"done": True}], False), ([], True)]
    os.close(own)
    os.dup2(reader, writer)  # the fixture closes it


@pytest.mark.fault("worker writes other bytes")
@pytest.mark.parametrize(
    "line",
    [
        pickle.dumps({"case": 0}),
        b"[1]",
        b'{"case": 0, "reward": NaN}',
        b"[" * 30_000,
    ],
)
def test_other_bytes_are_refused(pipe: tuple[int, int], line: bytes) -> None:
    reader, writer = pipe
    os.write(writer, line.replace(b"\n", b" ") + b"\n")
    with pytest.raises(BadMessageError, match="a message is not"):
        MessageReader(reader).read()


def test_a_message_without_an_end_is_refused(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    messages = MessageReader(reader)
    os.write(writer, b"x" * MAX_LINE_BYTES)
    assert messages.read() == ([], False)
    os.write(writer, b"x")
    with pytest.raises(BadMessageError, match="more than 65,536 bytes"):
        messages.read()


@given(
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.text(min_size=1, max_size=100),
    st.dictionaries(st.text(max_size=100), st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_a_verdict_arrives_as_it_was_sent(reward: float | None, reason: str, parts: dict[str, float]) -> None:
    verdict = Verdict(reward, reason, parts)
    assert verdict_of(json.loads(json.dumps(verdict_fields(verdict, "f.py:1")))) == verdict


@given(st.dictionaries(st.sampled_from(["reward", "reason", "parts"]), st.from_type(object) | st.text() | st.floats()))
def test_a_message_gives_a_verdict_or_is_refused(message: dict[str, object]) -> None:
    try:
        verdict = verdict_of(message)
    except BadMessageError:
        return
    assert isinstance(verdict, Verdict)


@pytest.mark.parametrize("parts", [{"a": float("nan")}, {"a": "b"}, {"a": None}])
def test_parts_that_are_no_finite_numbers_cost_the_reward(parts: dict[str, float]) -> None:
    fields = verdict_fields(Verdict(1.0, "", parts), "f.py:1")
    assert fields["reward"] is None
    assert fields["reason"].startswith("f.py:1: the verdict is not made of numbers: ")


def test_too_many_parts_cost_the_reward() -> None:
    fields = verdict_fields(Verdict(1.0, "", {str(i): 1.0 for i in range(MAX_PARTS + 1)}), "f.py:1")
    assert fields["reward"] is None
    assert "f.py:1: the verdict has 65 parts; at most 64 parts are allowed" in fields["reason"]


@pytest.mark.parametrize("letter", ["\U0001f600", "\x01", "\u20ac", '"'])
def test_the_largest_verdict_fits_into_a_message(letter: str) -> None:
    verdict = Verdict(1.0, letter * 10_000, {f"{i:02d}{letter * 98}": 1e-300 / 3 for i in range(MAX_PARTS)})
    fields = {"case": 10**6, "trace": letter * MAX_TRACE_CHARS, **verdict_fields(verdict, "")}
    assert MAX_LINE_BYTES / 4 < len(encoded(fields)) < MAX_LINE_BYTES
