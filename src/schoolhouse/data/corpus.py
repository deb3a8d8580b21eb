"""Rows of token ids for pretraining, made from documents.

`rows(step, count)` is a pure function of seed and step, so a resumed run continues with the same rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from schoolhouse.data.tokenizer import END_OF_TEXT, Tokenizer
from schoolhouse.randomness import numpy_random
from schoolhouse.types import NAN, Key, Message, Problem, Rollout, SchoolError

DocumentFn = Callable[[int, int], list[str]]
"""(step, count) -> `count` documents. The same arguments give the same documents."""

_MAX_OVERSHOOT = 3  # limit for a held-out part, as a multiple of its share; above it, another cut is tried
_PIECE: int = 1 << 16  # characters per encoded piece: long texts are cut before a line, between two tokens


class RowSource(Protocol):
    """Source of pretraining rows."""

    def rows(self, step: int, count: int) -> list[list[int]]:
        """`count` rows of `seq_len` ids for this step."""
        ...


class TextSplit(NamedTuple):
    """A text file in two parts that share no document."""

    train: list[str]
    held_out: list[str]


class CorpusRows:
    """Chunks of a fixed text, shuffled again in each epoch. `count` must stay the same during a run."""

    def __init__(self, ids: np.ndarray, seq_len: int, seed: int = 0) -> None:
        """ids [n] int32, one stream with separators. Raises SchoolError if the stream does not fill one row."""
        self._ids, self._seq_len, self._seed = ids, seq_len, seed
        self.size = (len(ids) - 1) // (seq_len - 1)
        """Number of rows in an epoch."""
        if self.size < 1:
            raise SchoolError(
                f"the text has {len(ids)} tokens, fewer than one row of {seq_len}; give more text, or a smaller seq_len"
            )
        self._order = lru_cache(2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return numpy_random(Key(self._seed, "corpus", epoch)).permutation(self.size)

    def rows(self, step: int, count: int) -> list[list[int]]:
        """Rows `step * count` to `(step + 1) * count` of the endless shuffled sequence."""
        rows = []
        for i in range(step * count, (step + 1) * count):
            start = int(self._order(i // self.size)[i % self.size]) * (self._seq_len - 1)
            rows.append(self._ids[start : start + self._seq_len].tolist())
        return rows


class GeneratedRows:
    """Rows of generated text. Each step generates as many documents as its rows need."""

    def __init__(self, documents: DocumentFn, tokenizer: Tokenizer, seq_len: int) -> None:
        self._documents, self._tokenizer, self._seq_len = documents, tokenizer, seq_len
        sample = documents(0, 64)
        if not any(sample):
            raise SchoolError("the task's pretraining text is empty: there is nothing to pretrain on")
        self._mean_length = len(token_stream(sample, tokenizer)) / len(sample)

    def rows(self, step: int, count: int) -> list[list[int]]:
        """The first `count` rows of this step's documents."""
        num_tokens = count * (self._seq_len - 1) + 1
        num_documents = int(1.1 * num_tokens / self._mean_length) + 1
        while len(ids := token_stream(self._documents(step, num_documents), self._tokenizer)) < num_tokens:
            num_documents *= 2
        return chunks(ids, self._seq_len)[:count]


def row_source(
    source: DocumentFn | Sequence[str], tokenizer: Tokenizer, seq_len: int, seed: int = 0
) -> CorpusRows | GeneratedRows:
    """Rows of `seq_len` ids from a list of documents, or from documents generated for each step."""
    if seq_len < 2:
        raise SchoolError(f"a seq_len of {seq_len} leaves no token to predict; it must be at least 2")
    if isinstance(source, Sequence):
        return CorpusRows(token_stream(source, tokenizer), seq_len, seed)
    return GeneratedRows(source, tokenizer, seq_len)


def token_stream(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one stream of ids, int32, with a separator before, between and after them.

    A document begins with the ids that the tokenizer's own rules put before a text (a bos token, for many models).
    """
    separator = tokenizer.special_tokens.get(END_OF_TEXT, tokenizer.eos_id)
    bos_ids = [token for token in tokenizer.bos_ids if token != separator]
    pieces, ends = [], []
    for document in documents:
        pieces += _pieces(document)
        ends.append(len(pieces))
    encoded = tokenizer.encode_batch(pieces)
    parts: list[list[int]] = [[separator]]
    for start, end in zip([0, *ends], ends, strict=False):
        parts += [bos_ids, *encoded[start:end], [separator]]
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def chunks(ids: Sequence[int] | np.ndarray, seq_len: int) -> list[list[int]]:
    """Rows of up to `seq_len` ids. Each row begins with the last id of the row before.

    So every id except the first id of all is predicted exactly once. The last row can be shorter.
    """
    ids = np.asarray(ids)
    return [ids[start : start + seq_len].tolist() for start in range(0, max(len(ids) - 1, 0), seq_len - 1)]


def byte_count(documents: Sequence[str]) -> int:
    """Bytes of documents in UTF-8: the denominator of bits per byte. Separators are not counted."""
    return sum(len(document.encode()) for document in documents)


def bits_per_byte(nats: float, documents: Sequence[str]) -> float:
    """Bits per byte of documents from the summed negative log-likelihood, in nats, of all their ids."""
    return nats / np.log(2).item() / byte_count(documents)


def split_text_file(path: Path | str, held_out: float = 0.05) -> TextSplit:
    """Split a text file into two parts, so that about the fraction `held_out` of its bytes is held out.

    The file is a .txt or .jsonl file (key `text`), or one of them as .gz. In a .txt, <|endoftext|> separates documents.
    A hash of the text decides whether a document is held out, so equal documents are in the same part. If there is only
    one document, its last paragraphs are held out.
    Raises SchoolError; the message names file and line.
    """
    if not 0 < held_out < 1:
        raise SchoolError(f"held_out is {held_out}; it is a share of the text and must lie between 0 and 1")
    documents = read_documents(path)
    if len(documents) == 1:
        documents = _split_tail(documents[0], held_out)
        parts = TextSplit(documents[:1], documents[1:])
    else:
        chosen = _choose_held_out(documents, held_out)
        parts = TextSplit(
            [d for d in documents if _hash(d) not in chosen], [d for d in documents if _hash(d) in chosen]
        )
    if not parts.train or not parts.held_out:
        raise SchoolError(f"{path} cannot be split: it needs two different documents, or one of several paragraphs")
    share = byte_count(parts.held_out) / byte_count(documents)
    if share > max(_MAX_OVERSHOOT * held_out, 0.5):
        raise SchoolError(
            f"{path} cannot be split: its documents, or its paragraphs, are so large that {share:.0%} would be held "
            f"out instead of {held_out:.0%}; cut it into more documents"
        )
    return parts


def read_documents(path: Path | str) -> list[str]:
    """The documents of a text file, without empty ones. Raises SchoolError; the message names file and line."""
    path = Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("txt", "jsonl"):
        raise SchoolError(f"{path}: text is read from .txt, .jsonl, .txt.gz or .jsonl.gz; rename or convert the file")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            documents = file.read().split(END_OF_TEXT) if kind == "txt" else list(_jsonl_texts(path, file))
    except FileNotFoundError:
        raise SchoolError(f"{path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SchoolError(f"{path} is no gzip file or is truncated ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise SchoolError(
            f"{path} is not UTF-8 text ({error.reason} near byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise SchoolError(f"{path} cannot be read: {error.strerror}") from error
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise SchoolError(f"{path} is empty; give a file with text")
    return documents


def _jsonl_texts(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SchoolError(f"{path}:{number}: not JSON ({error.msg}); each line must be one JSON object") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise SchoolError(f"{path}:{number}: `text` is missing or is not a string (the row has: {keys})")
        try:
            row["text"].encode()
        except UnicodeEncodeError as error:
            raise SchoolError(
                f"{path}:{number}: `text` holds a lone surrogate, half a character ({error.reason}); remove it"
            ) from error
        yield row["text"]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _choose_held_out(documents: list[str], share: float) -> set[bytes]:
    """Hashes of documents that together have the fraction `share` of all bytes, or a little more.

    A document larger than _MAX_OVERSHOOT times this share is not chosen if the other documents are enough.
    """
    needed = share * byte_count(documents)
    small = [document for document in documents if len(document.encode()) <= _MAX_OVERSHOOT * needed]
    chosen = set()
    for document in sorted(small if byte_count(small) >= needed else documents, key=_hash):
        chosen.add(_hash(document))
        needed -= len(document.encode())
        if needed <= 0:
            break
    return chosen


def _split_tail(text: str, share: float) -> list[str]:
    """Cut a text in two at the last paragraph or line before its last `share`. If there is none: the whole text."""
    target = int(len(text) * (1 - share))
    for boundary in ("\n\n", "\n"):
        at = text.rfind(boundary, 0, target)
        near = len(text) - at <= _MAX_OVERSHOOT * (len(text) - target) or boundary == "\n"
        if at > 0 and near and text[:at].strip() and text[at:].strip():
            return [text[: at + len(boundary)], text[at + len(boundary) :]]
    return [text]


def _pieces(text: str) -> list[str]:
    """Cut a text into pieces of about _PIECE characters. Each cut is before a line with a visible first character.

    No token of a byte-level BPE crosses such a cut.
    """
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        cut = re.compile(r"(?<=\n)(?=\S)").search(text, start + _PIECE)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def text_rollouts(rows: Sequence[Sequence[int]], seed: int, step: int) -> list[Rollout]:
    """Rows of text as rollouts. The loss mask covers every token."""
    problem = Problem("text", (Message("user", ""),), "")
    return [
        Rollout(problem, Key(seed, "text", step, i), tuple(row), (True,) * len(row), (NAN,) * len(row))
        for i, row in enumerate(rows)
    ]
