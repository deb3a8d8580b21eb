"""Rollouts token by token, for eyes: what each token says, who said it, how likely it was, what it earned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from schoolhouse.data.stream_decode import TextDecoder
from schoolhouse.data.tokenizer import END_THINK, THINK, Tokenizer
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.types import SchoolError

Json = dict[str, Any]


def token_rows(run: Path, rows: Sequence[Json]) -> list[Json]:
    """Each rollout with `pieces`: [text, kind, log-probability or None], and its `advantage`.

    kind       prompt, thought, answer, given (said by others, or forced): what is not the policy's is never trained on
    advantage  score less the group's mean: what every estimator of the group family begins with
    """
    tokenizer = _tokenizer(run)
    told = []
    for row in rows:
        light = {key: value for key, value in row.items() if key not in ("tokens", "logprob", "sampled_spans")}
        score, mean = row.get("reward"), row.get("mean")
        advantage = None if score is None or mean is None else score - mean
        told.append({**light, "advantage": advantage, "pieces": pieces(tokenizer, row)})
    return told


def pieces(tokenizer: Tokenizer | None, row: Json) -> list[list[Any]]:
    """[text, kind, log-probability or None] of each token; without a tokenizer ids stand for words."""
    written = [False] * len(row["tokens"])
    for start, end in row["sampled_spans"]:
        written[start:end] = [True] * (end - start)
    think = tokenizer.special_tokens.get(THINK) if tokenizer else None
    end_think = tokenizer.special_tokens.get(END_THINK) if tokenizer else None
    decoding = TextDecoder(tokenizer) if tokenizer else None
    logprobs, found, thinking, begun = iter(row["logprob"]), [], False, False
    for token, is_written in zip(row["tokens"], written, strict=True):
        text = decoding.push(token) if decoding else f"{token} "
        begun = begun or is_written
        if not is_written:
            kind = "given" if begun else "prompt"
        elif token == think:
            thinking, kind = True, "thought"
        elif token == end_think:
            thinking, kind = False, "thought"
        else:
            kind = "thought" if thinking else "answer"
        found.append([text, kind, next(logprobs, None) if is_written else None])
    return found


def _tokenizer(run: Path) -> Tokenizer | None:
    """Of the run's newest checkpoint; None where there is none yet."""
    try:
        folder = resolve_model(run)
        return _load(str(folder)) if folder.is_dir() else None
    except (SchoolError, OSError):
        return None


@lru_cache(16)
def _load(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)
