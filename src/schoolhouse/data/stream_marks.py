"""Returns the text of thought and answer of a turn that grows piece by piece.

`PartText` drops the blanks around one part. `MarkSplitter` splits a text at marks of thought that have several tokens,
such as `<|channel|>analysis<|message|>`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from schoolhouse.data.thought import ThoughtFormat

Part = Literal["thought", "answer"]


class Delta(NamedTuple):
    """New text of one part of a completion: the thought or the answer."""

    part: Part
    text: str


class PartText:
    """Returns the text of a growing part (the thought or the answer) without the blanks or marks around it.

    prefix  text that is dropped if the part begins with it
    suffix  text that is dropped if the part is complete and ends with it
    Text that may belong to prefix or suffix is held back until more text arrives.
    """

    def __init__(self, name: Part, prefix: str, suffix: str) -> None:
        self.name: Part = name
        self._prefix, self._suffix, self._held = prefix, suffix, ""

    def push(self, piece: str, last: bool = False, complete: bool = False) -> list[Delta]:
        """Add a piece of the part, and return the new text without prefix and suffix.

        last      the piece is the last piece of the part
        complete  the part has ended, and was not cut off
        """
        text = self._held + piece
        if not last and text != self._prefix and self._prefix.startswith(text):
            self._held = text
            return []
        text, self._prefix = text.removeprefix(self._prefix), ""
        text = text.removesuffix(self._suffix) if complete else text
        held = 0 if last else overlap(text, self._suffix)
        self._held = text[len(text) - held :]
        return [Delta(self.name, text[: len(text) - held])] if len(text) > held else []


def first_part(style: ThoughtFormat) -> PartText | None:
    """Return the thought if the prompt opens it. If not, return None, because the part is not known yet."""
    return thought_part(style) if style.opened_by_prompt else None


def thought_part(style: ThoughtFormat) -> PartText:
    """Return an empty thought."""
    return PartText("thought", style.before, style.after)


def answer_part(style: ThoughtFormat, after_thought: bool) -> PartText:
    """Return an empty answer, which follows a thought or begins the turn."""
    return PartText("answer", style.between if after_thought else style.lead, style.ending)


def overlap(text: str, mark: str) -> int:
    """Count the characters at the end of a text that are the beginning of a mark."""
    return next((n for n in range(min(len(text), len(mark)), 0, -1) if text.endswith(mark[:n])), 0)


class MarkSplitter:
    """Returns the new text of thought and answer for each piece of a turn. Text that may belong to a mark is held back
    until more text arrives."""

    def __init__(self, style: ThoughtFormat) -> None:
        self._style, self._part, self._text = style, first_part(style), ""

    def push(self, piece: str, ending: bool = False, complete: bool = False) -> list[Delta]:
        """Add a piece of the turn, and return the text that this piece adds to thought and answer.

        ending    the piece is the last piece of the turn
        complete  the policy ended the turn itself
        """
        self._text += piece
        part = self._part = self._part or self._find_part(ending)
        if part is None:
            return []
        if part.name == "answer":
            return part.push(self._take(), ending, complete)
        thought, closed, rest = self._text.partition(self._style.end)
        if not closed:
            return part.push(self._take(0 if ending else overlap(thought, self._style.end)), ending)
        self._text = rest
        self._part = answer_part(self._style, after_thought=True)
        return [*part.push(thought, last=True, complete=True), *self._part.push(self._take(), ending, complete)]

    def _take(self, held: int = 0) -> str:
        """Return the text that has arrived, and hold back its last `held` characters."""
        at = len(self._text) - held
        text, self._text = self._text[:at], self._text[at:]
        return text

    def _find_part(self, ending: bool) -> PartText | None:
        """Find out whether the turn begins with a thought. Returns None if more text is needed."""
        style, begun = self._style, self._text.lstrip()
        if begun.startswith(style.start):
            self._text = begun[len(style.start) :]
            return thought_part(style)
        partial_lead = style.lead.startswith(self._text) and self._text != style.lead
        if not ending and (style.start.startswith(begun) or partial_lead):
            return None
        return answer_part(style, after_thought=False)
