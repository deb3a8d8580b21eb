from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data import corpus
from schoolhouse.data.corpus import (
    CorpusRows,
    bits_per_byte,
    byte_count,
    chunks,
    read_documents,
    row_source,
    split_text_file,
    token_stream,
)
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import SchoolError

DOCUMENTS = [f"Story {n}: Emily buys {n} apples.\nThe end.\n" for n in range(40)]


def generated(step: int, count: int) -> list[str]:
    return [f"At step {step} Emily buys {n} apples." for n in range(count)]


@given(ids=st.lists(st.integers(0, 99), max_size=60), seq_len=st.integers(2, 9))
def test_every_id_but_the_first_is_predicted_exactly_once(ids: list[int], seq_len: int) -> None:
    rows = chunks(ids, seq_len)
    assert [token for row in rows for token in row[1:]] == ids[1:]
    assert all(1 < len(row) <= seq_len for row in rows)


def test_a_separator_stands_between_documents(tokenizer: Tokenizer) -> None:
    ids = token_stream(["one", "two"], tokenizer).tolist()
    end = tokenizer.eos_id
    assert ids == [end, *tokenizer.encode("one"), end, *tokenizer.encode("two"), end]


@given(text=st.lists(st.sampled_from(["a", " ", "\n", "\r\n", "12", "!", "é", "\u2028"]), max_size=60).map("".join))
def test_long_texts_are_cut_where_no_token_reaches_across(tokenizer: Tokenizer, text: str) -> None:
    original, corpus._PIECE = corpus._PIECE, 5
    try:
        assert token_stream([text], tokenizer).tolist()[1:-1] == tokenizer.encode(text)
    finally:
        corpus._PIECE = original


def test_an_epoch_shows_every_chunk_once_and_the_next_in_another_order(tokenizer: Tokenizer) -> None:
    source = CorpusRows(token_stream(DOCUMENTS, tokenizer), 16, seed=3)
    first = [source.rows(step, 1)[0] for step in range(source.size)]
    second = source.rows(1, source.size)
    every = chunks(token_stream(DOCUMENTS, tokenizer), 16)[: source.size]
    assert sorted(first) == sorted(second) == sorted(every)
    assert first != second
    assert first != every


def test_rows_depend_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    source = row_source(DOCUMENTS, tokenizer, 16, seed=1)
    rows_of_steps = [source.rows(step, 5) for step in range(30)]
    assert row_source(DOCUMENTS, tokenizer, 16, seed=1).rows(29, 5) == rows_of_steps[29]
    assert row_source(DOCUMENTS, tokenizer, 16, seed=2).rows(29, 5) != rows_of_steps[29]
    assert all(len(row) == 16 for rows in rows_of_steps for row in rows)


@pytest.mark.parametrize("seq_len", [2, 16, 300])
def test_generated_text_fills_every_row(tokenizer: Tokenizer, seq_len: int) -> None:
    source = row_source(generated, tokenizer, seq_len)
    rows = source.rows(7, 4)
    assert [len(row) for row in rows] == [seq_len] * 4
    assert rows[0][: min(seq_len, 4)] == token_stream(generated(7, 1), tokenizer).tolist()[: min(seq_len, 4)]
    assert rows == row_source(generated, tokenizer, seq_len).rows(7, 4)
    assert rows != source.rows(8, 4) or seq_len == 2


def test_too_little_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SchoolError, match="fewer than one row of 64"):
        row_source(["short"], tokenizer, 64)
    with pytest.raises(SchoolError, match="pretraining text is empty"):
        row_source(lambda step, count: [""] * count, tokenizer, 64)
    with pytest.raises(SchoolError, match="`seq_len` is 1"):
        row_source(["short"], tokenizer, 1)


def test_one_text_gives_its_last_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Paragraph {n}.\n\n" for n in range(50)))
    parts = split_text_file(path, 0.1)
    assert parts.train[0] + parts.held_out[0] == path.read_text()
    assert parts.held_out[0].startswith("Paragraph")
    assert 0.08 < byte_count(parts.held_out) / byte_count(parts.train + parts.held_out) < 0.15


def test_equal_documents_fall_on_the_same_side(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS * 2))
    parts = split_text_file(path, 0.2)
    assert sorted(parts.train + parts.held_out) == sorted(DOCUMENTS * 2)
    assert not set(parts.train) & set(parts.held_out)
    assert 0.15 < byte_count(parts.held_out) / byte_count(DOCUMENTS * 2) < 0.3


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"])
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    texts = ["one é\r\n", "two"]
    content = (
        "<|endoftext|>".join(texts) if "txt" in name else "\n".join(json.dumps({"text": t}) for t in texts) + "\n\n"
    )
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_documents(tmp_path / name) == texts


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "b"', "a.jsonl:2: the line is not JSON"),
        ('{"body": "b"}', "a.jsonl:2: `text` is missing.*body"),
        ('{"text": 5}', "a.jsonl:2: `text` is missing or is not a string"),
        ('["text"]', "a.jsonl:2: .*list"),
        ('{"text": "\\ud800"}', "a.jsonl:2: `text` contains a lone surrogate"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + row + "\n")
    with pytest.raises(SchoolError, match=message):
        read_documents(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"caf\xe9 au lait", "not UTF-8"),
        ("a.txt.gz", b"plain", "not a gzip file"),
        ("a.txt.gz", gzip.compress(b"long enough to be cut" * 50, mtime=0)[:-12], "truncated"),
        ("a.pdf", b"x", "is not a .txt"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SchoolError, match=message):
        read_documents(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="nowhere.txt does not exist"):
        read_documents(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("text", ["one line", "one line\n"])
def test_a_text_that_cannot_be_split_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SchoolError, match="cannot be split"):
        split_text_file(tmp_path / "a.txt")


def test_a_title_alone_is_not_the_train_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A title\n\n" + "".join(f"line {i}\n" for i in range(5_000)))
    parts = split_text_file(tmp_path / "a.txt", 0.05)
    assert byte_count(parts.held_out) == pytest.approx(0.05 * byte_count(parts.train), rel=0.2)


def test_a_large_document_is_trained_on_and_small_ones_are_held_out(tmp_path: Path) -> None:
    small = [f"{i} " + "small " * 100 for i in range(8)]
    rows = [json.dumps({"text": text}) for text in ["large " * 5_000, *small]]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    parts = split_text_file(tmp_path / "a.jsonl", 0.05)
    assert parts.train[0].startswith("large")
    assert 0.05 <= byte_count(parts.held_out) / byte_count([*parts.train, *parts.held_out]) < 0.15


def test_a_file_that_would_be_held_out_nearly_whole_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A title\n" + "one line without an end " * 1_000)
    with pytest.raises(SchoolError, match="cut the text into more documents"):
        split_text_file(tmp_path / "a.txt", 0.05)


def test_bits_per_byte_of_a_coin_per_byte() -> None:
    assert bits_per_byte(nats=4 * math.log(2), documents=["é", "ab"]) == pytest.approx(1.0)


def test_the_whole_of_shakespeare_is_read(tokenizer: Tokenizer) -> None:
    path = Path(__file__).resolve().parents[2] / "../shared/data/tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/data/tinyshakespeare.txt beside the repository")
    parts = split_text_file(path)
    assert byte_count(parts.train) + byte_count(parts.held_out) == path.stat().st_size
    assert 0.04 < byte_count(parts.held_out) / path.stat().st_size < 0.06
