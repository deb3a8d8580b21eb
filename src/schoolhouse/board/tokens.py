"""The tokens of recorded rollouts: text, type and log-probability of each token, and the advantage of each rollout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from schoolhouse.data.stream_decode import TextDecoder
from schoolhouse.data.thought import guess_marks
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.manifest import recorded_mask
from schoolhouse.types import SchoolError

Json = dict[str, Any]

RAW_COLUMNS = ("tokens", "logprob", "sampled_spans")
"""Columns of a recorded rollout that have an entry for each token."""


def without_raw_columns(row: Json) -> Json:
    return {key: value for key, value in row.items() if key not in RAW_COLUMNS}


def rows_with_tokens(run: Path, rows: Sequence[Json]) -> list[Json]:
    """Each rollout with its `tokens` as [text, type, log-probability or None], and its `advantage`.

    type       prompt, thought, answer, or context. The policy did not sample context, so context is never trained on.
    advantage  the reward minus the mean reward of the group, before any scaling.
    """
    tokenizer = _tokenizer(run)
    return [
        {**without_raw_columns(row), "advantage": _advantage(row), "tokens": token_triples(tokenizer, row)}
        for row in rows
    ]


def _advantage(row: Json) -> float | None:
    reward, group_mean = row.get("reward"), row.get("group_mean")
    return None if reward is None or group_mean is None else reward - group_mean


def token_triples(tokenizer: Tokenizer | None, row: Json) -> list[list[Any]]:
    """Return [text, type, log-probability or None] for each token. Without a tokenizer, the text is the token's id."""
    think_id = end_think_id = None
    if tokenizer:
        start, end, _ = guess_marks(tokenizer.chat_template or "", tokenizer.special_tokens)
        think_id, end_think_id = tokenizer.special_tokens.get(start), tokenizer.special_tokens.get(end)
    decoder = TextDecoder(tokenizer) if tokenizer else None
    logprobs, triples, thinking, completion_begun = iter(row["logprob"]), [], False, False
    for token, is_sampled in zip(row["tokens"], recorded_mask(row), strict=True):
        text = decoder.push(token) if decoder else f"{token} "
        completion_begun = completion_begun or is_sampled
        if not is_sampled:
            token_type = "context" if completion_begun else "prompt"
        elif token == think_id:
            thinking, token_type = True, "thought"
        elif token == end_think_id:
            thinking, token_type = False, "thought"
        else:
            token_type = "thought" if thinking else "answer"
        triples.append([text, token_type, next(logprobs, None) if is_sampled else None])
    return triples


def _tokenizer(run: Path) -> Tokenizer | None:
    """Return the tokenizer of the run's newest checkpoint, or None if the run has no checkpoint yet."""
    try:
        folder = resolve_model(run)
        return _load(str(folder)) if folder.is_dir() else None
    except (SchoolError, OSError):
        return None


@lru_cache(16)
def _load(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)
