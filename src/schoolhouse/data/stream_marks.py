"""Splits a growing text at marks of thought that have several tokens, such as `<|channel|>analysis<|message|>`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from schoolhouse.data.thought import ThoughtFormat

Part = Literal["thought", "answer"]


class Delta(NamedTuple):
    """New text of one part of a completion: the thought or the answer."""

    part: Part
    text: str


def overlap(text: str, mark: str) -> int:
    """Count the characters at the end of a text that are the beginning of a mark."""
    return next((n for n in range(min(len(text), len(mark)), 0, -1) if text.endswith(mark[:n])), 0)


class MarkSplitter:
    """Returns the new text of thought and answer for each piece of a turn. Text that may belong to a mark is held back
    until more text arrives."""

    def __init__(self, style: ThoughtFormat) -> None:
        self._style, self._text, self._part = style, "", "thought" if style.opened_by_prompt else ""
        self._prefix = style.before  # text that is dropped if the part begins with it

    def push(self, piece: str, ending: bool = False, complete: bool = False) -> list[Delta]:
        """Add a piece of the turn, and return the text that this piece adds to thought and answer.

        ending    the piece is the last piece of the turn
        complete  the policy ended the turn itself
        """
        self._text += piece
        deltas: list[Delta] = []
        if not self._part and not self._find_part(ending):
            return deltas
        if self._part == "thought":
            if not self._drop_prefix(ending):
                return deltas
            mark = self._style.after + self._style.end
            thought, closed, rest = self._text.partition(self._style.end)
            if not closed:
                held = 0 if ending else max(overlap(thought, mark), overlap(thought, self._style.end))
                self._text = thought[len(thought) - held :]
                return _deltas("thought", thought[: len(thought) - held])
            deltas = _deltas("thought", thought.removesuffix(self._style.after))
            self._part, self._text, self._prefix = "answer", rest, self._style.between
        if not self._drop_prefix(ending):
            return deltas
        text = self._text.removesuffix(self._style.ending) if complete else self._text
        held = 0 if ending else overlap(text, self._style.ending)
        self._text = text[len(text) - held :]
        return [*deltas, *_deltas("answer", text[: len(text) - held])]

    def _find_part(self, ending: bool) -> bool:
        """Find out whether the turn begins with a thought. Returns False if more text is needed."""
        style, begun = self._style, self._text.lstrip()
        if begun.startswith(style.start):
            self._part, self._text, self._prefix = "thought", begun[len(style.start) :], style.before
            return True
        partial_lead = style.lead.startswith(self._text) and self._text != style.lead
        if not ending and (style.start.startswith(begun) or partial_lead):
            return False
        self._part, self._prefix = "answer", style.lead
        return True

    def _drop_prefix(self, ending: bool) -> bool:
        """Drop the prefix at the beginning of a part (the thought or the answer). Returns False if more text is
        needed."""
        if self._prefix and not ending and self._text != self._prefix and self._prefix.startswith(self._text):
            return False
        self._text, self._prefix = self._text.removeprefix(self._prefix), ""
        return True


def _deltas(part: Part, text: str) -> list[Delta]:
    return [Delta(part, text)] if text else []
