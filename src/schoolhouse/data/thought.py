"""Describes how models mark thoughts, and splits a turn into thought and answer.

Most reasoning models write `<think>` and `</think>`, and each of these marks is one token. Other models have marks of
several tokens (`<|channel|>analysis<|message|>` ... `<|end|>`) or of plain text (`Here are my reasoning steps:`). A
mark of one token is found by its id. Other marks are searched in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import NamedTuple

from schoolhouse.data.tokenizer import END_THINK, THINK, Tokenizer

KNOWN_MARKS = (
    (THINK, END_THINK),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""The start and the end of a thought in published models, for templates that do not show their own marks."""


class ThoughtFormat(NamedTuple):
    """The marks and blanks that a template and a tokenizer write around a thought and an answer.

    start, end             the marks of a thought
    start_id, end_id       ids of the marks; an id is None if the mark has several tokens
    opened_by_prompt       whether the generation prompt itself opens the thought
    before, after          text after the start mark, and text before the end mark
    between                text between the end mark and the answer
    prefix                 text that the model writes before the start
    lead                   text before an answer without a thought
    ending                 text between the answer and the end of the turn
    always                 whether the template writes an empty thought if there is none
    switch                 argument of the template that allows thoughts, if the prompt closes the thought itself
    own                    whether template or tokenizer show these marks; if False, `<think>` is only assumed
    """

    start: str = THINK
    end: str = END_THINK
    start_id: int | None = None
    end_id: int | None = None
    opened_by_prompt: bool = False
    before: str = ""
    after: str = ""
    between: str = ""
    prefix: str = ""
    lead: str = ""
    ending: str = ""
    always: bool = False
    switch: str = ""
    own: bool = True

    @property
    def by_ids(self) -> bool:
        """Return True if the marks are found by their ids. If False, the marks are searched in the text."""
        return self.end_id is not None and (self.opened_by_prompt or self.start_id is not None)

    def closed_by(self, prompt: str) -> bool:
        """Return True if a generation prompt ends with a thought that is already closed."""
        return not self.opened_by_prompt and prompt.rstrip().endswith(self.end)

    def wrap(self, thought: str | None, answer: str) -> str:
        """Return the text of a turn after the generation prompt. If the text opens a thought, the text also closes the
        thought."""
        if thought is None and not (self.opened_by_prompt or self.always):
            return self.lead + answer + self.ending
        opening = "" if self.opened_by_prompt else self.prefix + self.start + self.before
        return f"{opening}{thought or ''}{self.after}{self.end}{self.between}{answer}{self.ending}"


class ThoughtParts(NamedTuple):
    """The thought and the answer of a turn, without their marks. `thought` is None if the turn has no thought."""

    thought: str | None
    answer: str


def guess_marks(template: str, special_tokens: Collection[str]) -> tuple[str, str, bool]:
    """Return the marks of a thought, and whether template or tokenizer contain them. The default is `<think>`."""
    for start, end in KNOWN_MARKS:
        first_tag = start.partition(">")[0] if start.startswith("<") else start
        if end in template and (first_tag in template or start == THINK):
            return start, end, True
    for start, end in KNOWN_MARKS:
        if start in special_tokens and end in special_tokens:
            return start, end, True
    return THINK, END_THINK, False


def split_opening(opening: str) -> tuple[str, str, str]:
    """Split the opening of a thought into three parts: the blanks before the mark, the mark, and the blanks after the
    mark."""
    mark = opening.strip()
    at = opening.index(mark)
    return opening[:at], mark, opening[at + len(mark) :]


def split_closing(closing: str, special_tokens: Collection[str]) -> tuple[str, str, str]:
    """Split the closing of a thought into the text before the end mark, the mark, and the text after the mark.

    The mark is the first special token, or else the first tag, or else the whole text without the outer blanks.
    """
    pattern = "|".join([*map(re.escape, sorted(special_tokens, key=len, reverse=True)), r"</?[^<>\s]+>|\[[^\[\]]+\]"])
    found = re.search(pattern, closing)
    mark = found.group() if found else closing.strip()
    at = closing.index(mark)
    return closing[:at], mark, closing[at + len(mark) :]


def thought_bounds(style: ThoughtFormat, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int | None, int, bool]:
    """Find the first thought of a turn, by ids or in the text.

    Returns the start of the thought (None without a thought), its end (`len(ids)` if the thought is never closed), and
    whether the thought was closed.
    """
    return _bounds_by_ids(style, ids) if style.by_ids else _bounds_in_text(style, tokenizer, ids)


def _bounds_by_ids(style: ThoughtFormat, ids: Sequence[int]) -> tuple[int | None, int, bool]:
    if style.opened_by_prompt:
        start = 0
    elif style.start_id in ids:
        start = ids.index(style.start_id) + 1
    else:
        return None, len(ids), False
    closed = style.end_id in ids[start:]
    return start, ids.index(style.end_id, start) if closed else len(ids), closed


def _bounds_in_text(style: ThoughtFormat, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int | None, int, bool]:
    def tokens_until(tag: str, ids: Sequence[int]) -> int:
        return bisect_left(range(len(ids)), True, key=lambda n: tag in tokenizer.decode_sections(ids[:n]))

    if style.opened_by_prompt:
        start = 0
    elif style.start in tokenizer.decode_sections(ids):
        start = tokens_until(style.start, ids)
    else:
        return None, len(ids), False
    rest = ids[start:]
    if style.end not in tokenizer.decode_sections(rest):
        return start, len(ids), False
    end_tokens = len(tokenizer.encode(style.end, parse_special=True, continues=True))
    return start, start + max(0, tokens_until(style.end, rest) - end_tokens), True


def split_turn(style: ThoughtFormat, tokenizer: Tokenizer, ids: Sequence[int], complete: bool) -> ThoughtParts:
    """Split a turn, given without its end-of-turn id, into thought and answer.

    `complete` says whether the turn had an end-of-turn id. The thought is between the first start mark and the next end
    mark. Later marks are part of the answer. Text before the start mark is dropped. If the thought is never closed, the
    answer is empty.
    """
    ending = style.ending if complete else ""
    if style.by_ids:
        start, end, closed = _bounds_by_ids(style, ids)
        if start is None:
            return ThoughtParts(None, _without_prefix(tokenizer.decode_sections(ids), style.lead).removesuffix(ending))
        thought, answer = (tokenizer.decode_sections(part) for part in (ids[start:end], ids[end + 1 :]))
    else:
        text = tokenizer.decode_sections(ids)
        _, opened, rest = ("", style.start, text) if style.opened_by_prompt else text.partition(style.start)
        if not opened:
            return ThoughtParts(None, _without_prefix(text, style.lead).removesuffix(ending))
        thought, end_tag, answer = rest.partition(style.end)
        closed = bool(end_tag)
    if closed:
        thought = thought.removesuffix(style.after)
    thought = thought.removeprefix(style.before)
    return ThoughtParts(thought, answer.removeprefix(style.between).removesuffix(ending))


def _without_prefix(text: str, prefix: str) -> str:
    """Remove a prefix from a text. SentencePiece drops a blank at the start of a text, so this blank may be missing."""
    return text.removeprefix(prefix if text.startswith(prefix) else prefix.lstrip())
