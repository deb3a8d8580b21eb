"""Rows of token ids for pretraining, made from documents.

The result of `rows(step, count)` depends only on the seed and the step, so a resumed run continues with the same rows.
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
from schoolhouse.runs.progress import phased
from schoolhouse.types import NAN, Key, Message, Problem, Rollout, SchoolError

DocumentFn = Callable[[int, int], list[str]]
"""A function that maps (step, count) to `count` documents. The same arguments always give the same documents."""

_MAX_OVERSHOOT = 3  # limit for a held-out part, as a multiple of its share; above it, another cut is tried
_PIECE: int = 1 << 16  # characters per encoded piece: long texts are cut before a line, between two tokens


class RowSource(Protocol):
    """A source of token rows for pretraining."""

    def rows(self, step: int, count: int) -> list[list[int]]:
        """Return `count` rows of `seq_len` token ids for this step."""
        ...


class TextSplit(NamedTuple):
    """The documents of a text file in two parts. No document is in both parts."""

    train: list[str]
    held_out: list[str]


class CorpusRows:
    """Rows that are chunks of a fixed text. The chunks are shuffled again in each epoch.

    The number of rows per step must stay the same during a run.
    """

    def __init__(self, ids: np.ndarray, seq_len: int, seed: int = 0) -> None:
        """Create rows from `ids` [n] int32, one stream of token ids with separators between documents.

        Raises SchoolError if the stream is shorter than one row.
        """
        self._ids, self._seq_len, self._seed = ids, seq_len, seed
        self.size = (len(ids) - 1) // (seq_len - 1)
        """Number of rows in an epoch."""
        if self.size < 1:
            raise SchoolError(
                f"the text has {len(ids)} tokens, fewer than one row of {seq_len}; give more text, or lower `seq_len`"
            )
        self._order = lru_cache(2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return numpy_random(Key(self._seed, "corpus", epoch)).permutation(self.size)

    def rows(self, step: int, count: int) -> list[list[int]]:
        """Return the rows from `step * count` to `(step + 1) * count` of the endless shuffled sequence of rows."""
        rows = []
        for i in range(step * count, (step + 1) * count):
            start = int(self._order(i // self.size)[i % self.size]) * (self._seq_len - 1)
            rows.append(self._ids[start : start + self._seq_len].tolist())
        return rows


class GeneratedRows:
    """Rows of generated text. In each step, enough documents are generated to fill the rows of the step."""

    def __init__(self, documents: DocumentFn, tokenizer: Tokenizer, seq_len: int) -> None:
        self._documents, self._tokenizer, self._seq_len = documents, tokenizer, seq_len
        sample = documents(0, 64)
        if not any(sample):
            raise SchoolError("the task's pretraining text is empty; let `pretraining_text` return documents with text")
        self._mean_length = len(token_stream(sample, tokenizer)) / len(sample)

    def rows(self, step: int, count: int) -> list[list[int]]:
        """Return the first `count` rows of the documents of this step."""
        num_tokens = count * (self._seq_len - 1) + 1
        num_documents = int(1.1 * num_tokens / self._mean_length) + 1
        while len(ids := token_stream(self._documents(step, num_documents), self._tokenizer)) < num_tokens:
            num_documents *= 2
        return chunks(ids, self._seq_len)[:count]


def row_source(
    source: DocumentFn | Sequence[str], tokenizer: Tokenizer, seq_len: int, seed: int = 0
) -> CorpusRows | GeneratedRows:
    """Create a source of rows with `seq_len` ids each.

    The rows come from a list of documents, or from documents that are generated for each step.
    """
    if seq_len < 2:
        raise SchoolError(f"`seq_len` is {seq_len}, which leaves no token to predict; set `seq_len` to at least 2")
    if isinstance(source, Sequence):
        return CorpusRows(token_stream(source, tokenizer), seq_len, seed)
    return GeneratedRows(source, tokenizer, seq_len)


@phased("splitting the text into tokens")
def token_stream(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Encode all documents as one stream of ids (int32), with a separator before, between and after the documents.

    Each document begins with the ids that the tokenizer puts before a text, such as the bos token.
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
    """Divide a stream of ids into rows of up to `seq_len` ids. Each row begins with the last id of the row before.

    Every id of the stream except the first id is therefore predicted exactly once. The last row can be shorter.
    """
    ids = np.asarray(ids)
    return [ids[start : start + seq_len].tolist() for start in range(0, max(len(ids) - 1, 0), seq_len - 1)]


def byte_count(documents: Sequence[str]) -> int:
    """Count the bytes of the documents in UTF-8, without separators. The count is the denominator of bits per byte."""
    return sum(len(document.encode()) for document in documents)


def bits_per_byte(nats: float, documents: Sequence[str]) -> float:
    """Compute the bits per byte of documents.

    The argument `nats` is the negative log-likelihood in nats, summed over all token ids of the documents.
    """
    return nats / np.log(2).item() / byte_count(documents)


@phased("reading the text")
def split_text_file(path: Path | str, held_out: float = 0.05) -> TextSplit:
    """Split a text file into two parts, so that about the fraction `held_out` of its bytes is held out.

    The file is a .txt file or a .jsonl file with the key `text`; both can be compressed as .gz. In a .txt file,
    <|endoftext|> separates documents. A hash of the text decides whether a document is held out, so equal documents are
    always in the same part. If there is only one document, its last paragraphs are held out. Raises SchoolError if the
    file cannot be read or split; the message names the file and, if known, the line.
    """
    if not 0 < held_out < 1:
        raise SchoolError(f"`held_out` is {held_out}; set it to a fraction of the text between 0 and 1")
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
        raise SchoolError(
            f"{path} cannot be split; give a file with two different documents, or one document with two paragraphs"
        )
    share = byte_count(parts.held_out) / byte_count(documents)
    if share > max(_MAX_OVERSHOOT * held_out, 0.5):
        raise SchoolError(
            f"{path} cannot be split, because its documents or paragraphs are too long: {share:.0%} of the text would "
            f"be held out instead of {held_out:.0%}; cut the text into more documents"
        )
    return parts


def read_documents(path: Path | str) -> list[str]:
    """Read the documents of a text file, without empty documents.

    Raises SchoolError if the file cannot be read; the message names the file and, if known, the line.
    """
    path = Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("txt", "jsonl"):
        raise SchoolError(
            f"{path} is not a .txt, .jsonl, .txt.gz or .jsonl.gz file; rename the file, or convert it to .txt or .jsonl"
        )
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            documents = file.read().split(END_OF_TEXT) if kind == "txt" else list(_jsonl_texts(path, file))
    except FileNotFoundError:
        raise SchoolError(f"{path} does not exist; give the path of a text file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SchoolError(f"{path} is not a gzip file, or it is truncated ({error}); copy the file again") from error
    except UnicodeDecodeError as error:
        raise SchoolError(
            f"{path} is not UTF-8 text ({error.reason} near byte {error.start}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise SchoolError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
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
            raise SchoolError(
                f"{path}:{number}: the line is not JSON ({error.msg}); each line must be one JSON object"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise SchoolError(
                f"{path}:{number}: `text` is missing or is not a string (the row has: {keys}); add a string `text`"
            )
        try:
            row["text"].encode()
        except UnicodeEncodeError as error:
            raise SchoolError(
                f"{path}:{number}: `text` contains a lone surrogate, which is half a character ({error.reason}); "
                "remove it"
            ) from error
        yield row["text"]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _choose_held_out(documents: list[str], share: float) -> set[bytes]:
    """Choose documents that together have the fraction `share` of all bytes, or a little more. Returns their hashes.

    A document that is larger than _MAX_OVERSHOOT times the fraction `share` is not chosen if the other documents are
    enough.
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
    """Cut a text into two parts, so that the second part has at least the fraction `share` of the text.

    The cut is at the end of a paragraph or of a line. If the text has no such end, the whole text is one part.
    """
    target = int(len(text) * (1 - share))
    for boundary in ("\n\n", "\n"):
        at = text.rfind(boundary, 0, target)
        near = len(text) - at <= _MAX_OVERSHOOT * (len(text) - target) or boundary == "\n"
        if at > 0 and near and text[:at].strip() and text[at:].strip():
            return [text[: at + len(boundary)], text[at + len(boundary) :]]
    return [text]


def _pieces(text: str) -> list[str]:
    """Cut a text into pieces of about _PIECE characters. Each cut is before a line that does not start with a blank.

    A token of a byte-level BPE never crosses a cut before a line that does not start with a blank.
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
    """Convert rows of text to rollouts. The loss mask of each rollout covers all its tokens."""
    problem = Problem("text", (Message("user", ""),), "")
    return [
        Rollout(problem, Key(seed, "text", step, i), tuple(row), (True,) * len(row), (NAN,) * len(row))
        for i, row in enumerate(rows)
    ]
