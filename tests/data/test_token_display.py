from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.token_display import printable, show_tokens, token_bytes
from schoolhouse.data.tokenizer import Tokenizer


@given(text=st.text(max_size=30))
def test_the_tokens_bytes_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert b"".join(token_bytes(token, tokenizer) for token in tokenizer.encode(text)) == text.encode()


@given(data=st.binary(max_size=20))
def test_every_byte_becomes_visible(data: bytes) -> None:
    assert printable(data).isprintable()
    assert " " not in printable(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b" a\n", "·a⏎"), (b"\xf0\x9f", r"\xf0\x9f"), ("\u200b\u00e9".encode(), r"\u200bé"), (b"\x00\t", r"\x00⇥")],
)
def test_invisible_bytes_get_a_sign(data: bytes, text: str) -> None:
    assert printable(data) == text


def test_neighbouring_tokens_differ_in_colour_and_ids_follow(tokenizer: Tokenizer) -> None:
    shown = show_tokens("12 <think>", tokenizer, parse_special=True)
    ids = tokenizer.encode("12 <think>", parse_special=True)
    styles = [str(span.style) for span in shown.spans][: len(ids)]
    assert all(a != b for a, b in pairwise(styles))
    assert " ".join(map(str, ids)) in shown.plain
    assert f"{len(ids)} tokens, 10 characters, 10 bytes" in shown.plain


def test_an_empty_text_has_zero_tokens(tokenizer: Tokenizer) -> None:
    assert show_tokens("", tokenizer).plain.strip() == "0 tokens, 0 characters, 0 bytes"
