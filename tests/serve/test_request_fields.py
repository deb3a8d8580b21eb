"""Bodies are read as JSON in a short time, or refused."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.serve.request_fields import MAX_BODY_VALUES, BodyError, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_a_body_is_read_as_the_standard_parser_reads_it(value: object):
    text = json.dumps(value)
    assert read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("body", [b"{", b"", b"nothing", b"[1,]", b"\xff", b"[" * 5_000])
def test_a_body_that_is_not_json_is_refused(body: bytes):
    with pytest.raises(BodyError, match="not valid JSON"):
        read_json(body)


@pytest.mark.parametrize("text", ["\\ud800", "\\ude00", "a\\ud800b", "\\ud800\\ud800"])
def test_half_of_a_character_is_refused(text: str):
    with pytest.raises(BodyError, match="lone surrogate"):
        read_json(f'{{"prompt": "{text}"}}'.encode())


def test_a_whole_character_in_two_halves_is_read():
    assert read_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("value", ["1", "{}", "[]", '{"a": 1}', '"a"'])
def test_a_body_with_too_many_values_is_refused_before_it_is_read(value: str):
    body = f"[{','.join([value] * (MAX_BODY_VALUES + 1))}]".encode()
    start = time.perf_counter()
    with pytest.raises(BodyError, match=r"the limit is 200,000 values"):
        read_json(body)
    assert time.perf_counter() - start < 0.1


def test_a_long_text_is_read():
    text = "a {} [b], " * 20_000
    assert read_json(json.dumps(text).encode()) == text
