"""How models mark thoughts, and how a turn is split into thought and answer.

Most reasoning models write `<think>` and `</think>`, as one token each. Others have marks of several tokens
(`<|channel|>analysis<|message|>` ... `<|end|>`) or of plain text (`Here are my reasoning steps:`). Marks that are one
token each are found by their ids; other marks are searched in the text.
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
"""Start and end of a thought, as published models write them. For templates that do not show their own marks."""


class ThoughtFormat(NamedTuple):
    """How a template and a tokenizer write a thought, and the blanks around an answer.

    start, end             the marks of a thought
    start_id, end_id       ids of the marks; None if a mark is not one token
    opened_by_prompt       whether the generation prompt itself opens the thought
    before, after, between text after the start, before the end, and between the end and the answer
    prefix                 text that the model writes before the start
    lead                   text before an answer without a thought
    ending                 text between the answer and the end of the turn
    always                 whether the template writes an empty thought if there is none
    switch                 argument of the template that lets a model think, if the prompt closes the thought itself
    own                    whether template or tokenizer show these marks; False: `<think>` is only an assumption
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
        """Whether the marks are found by their ids. Otherwise they are searched in the text."""
        return self.end_id is not None and (self.opened_by_prompt or self.start_id is not None)

    def closed_by(self, prompt: str) -> bool:
        """Whether a generation prompt ends with a thought that is already closed."""
        return not self.opened_by_prompt and prompt.rstrip().endswith(self.end)

    def wrap(self, thought: str | None, answer: str) -> str:
        """The text of a turn after the generation prompt, up to its end. An opened thought is always closed."""
        if thought is None and not (self.opened_by_prompt or self.always):
            return self.lead + answer + self.ending
        opening = "" if self.opened_by_prompt else self.prefix + self.start + self.before
        return f"{opening}{thought or ''}{self.after}{self.end}{self.between}{answer}{self.ending}"


class ThoughtParts(NamedTuple):
    """The parts of a turn as text, without the text around them. `thought` is None if there is none."""

    thought: str | None
    answer: str


def guess_marks(template: str, special_tokens: Collection[str]) -> tuple[str, str, bool]:
    """Start and end of a thought that template or tokenizer know, and whether they know any (else `<think>`)."""
    for start, end in KNOWN_MARKS:
        first_tag = start.partition(">")[0] if start.startswith("<") else start
        if end in template and (first_tag in template or start == THINK):
            return start, end, True
    for start, end in KNOWN_MARKS:
        if start in special_tokens and end in special_tokens:
            return start, end, True
    return THINK, END_THINK, False


def split_opening(opening: str) -> tuple[str, str, str]:
    """The blanks before the start mark, the mark, and the blanks after it."""
    mark = opening.strip()
    at = opening.index(mark)
    return opening[:at], mark, opening[at + len(mark) :]


def split_closing(closing: str, special_tokens: Collection[str]) -> tuple[str, str, str]:
    """The text before the end mark, the mark, and the text between it and the answer.

    The mark is the first special token, else the first tag, else the whole text without the blanks around it.
    """
    pattern = "|".join([*map(re.escape, sorted(special_tokens, key=len, reverse=True)), r"</?[^<>\s]+>|\[[^\[\]]+\]"])
    found = re.search(pattern, closing)
    mark = found.group() if found else closing.strip()
    at = closing.index(mark)
    return closing[:at], mark, closing[at + len(mark) :]


def thought_bounds(style: ThoughtFormat, ids: Sequence[int]) -> tuple[int | None, int]:
    """Start of the first thought (None: no thought) and index of its end tag (len(ids): never closed), by ids."""
    if style.opened_by_prompt:
        start = 0
    elif style.start_id in ids:
        start = ids.index(style.start_id) + 1
    else:
        return None, len(ids)
    return start, ids.index(style.end_id, start) if style.end_id in ids[start:] else len(ids)


def text_bounds(style: ThoughtFormat, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int | None, int, bool]:
    """Like `thought_bounds`, by text; and whether the thought was closed."""

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
    """Thought and answer of a turn without its end-of-turn id. `complete`: whether the turn had this id.

    The thought is between the first start and the first end after it. Later marks are part of the answer. Text before
    the start is dropped. If the thought is never closed, the answer is empty.
    """
    ending = style.ending if complete else ""
    if style.by_ids:
        start, end = thought_bounds(style, ids)
        if start is None:
            return ThoughtParts(None, _without_prefix(tokenizer.decode_sections(ids), style.lead).removesuffix(ending))
        closed = end < len(ids)
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
    """The text without a prefix. SentencePiece drops a blank at the start of a text, so the prefix may lack its own."""
    return text.removeprefix(prefix if text.startswith(prefix) else prefix.lstrip())
