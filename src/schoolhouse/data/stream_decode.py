"""What is new in a reply with each token: the same text as `Conversation.read` gives in the end, piece by piece."""

from __future__ import annotations

from typing import Literal, NamedTuple

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer

Part = Literal["thought", "answer"]
_HALF = "\ufffd"


class Delta(NamedTuple):
    """Some more text of one part of a reply."""

    part: Part
    text: str


class TextDecoder:
    """Text of a growing list of ids. A character is given when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = self._upto = 0
        """Ids whose text has been given, and those before them that decoding needs to see."""

    def push(self, token: int) -> str:
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._from : self._upto])
        text = self._tokenizer.decode(self._ids[self._from :])
        if text.endswith(_HALF) and len(self._ids) - self._upto < 4:  # bytes of a character that is not complete
            return ""
        self._from, self._upto = self._upto, len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        """What has not been given because it ends in half a character."""
        before = self._tokenizer.decode(self._ids[self._from : self._upto])
        return self._tokenizer.decode(self._ids[self._from :])[len(before) :]


class StreamDecoder:
    """Listens to one turn, token by token. The thought's blanks are dropped as `read` drops them.

    One thing differs: a turn that says something before it thinks has said it, and all that follows is its answer.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._say = conversation
        self._think, self._end_think, opened, self._blanks = conversation.thought_marks
        self._part: Part | None = "thought" if opened else None
        self._closed = False
        self._decoding = TextDecoder(conversation.tokenizer)
        self._begun, self._held = False, ""

    def push(self, token: int) -> list[Delta]:
        """What this token adds."""
        if token in self._say.stop_ids:
            return []
        if token == self._think and self._part is None:
            self._next("thought")
            return []
        if token == self._end_think and self._part == "thought":
            last = self._told(self._decoding.flush(), closing=True)
            self._next("answer")
            return last
        self._part = self._part or "answer"
        return self._told(self._decoding.push(token))

    def flush(self) -> list[Delta]:
        """What was held back, when the turn is over."""
        return self._told(self._decoding.flush(), ending=True)

    def _next(self, part: Part) -> None:
        self._part, self._decoding, self._begun, self._held = part, TextDecoder(self._say.tokenizer), False, ""
        self._closed = part == "answer"

    def _told(self, text: str, closing: bool = False, ending: bool = False) -> list[Delta]:
        part = self._part
        if part is None:
            return []
        text = self._held + text
        self._held = ""
        lead = self._blanks[0] if part == "thought" else self._blanks[2] if self._closed else ""
        if not self._begun:
            if lead and not (closing or ending) and lead.startswith(text) and text != lead:
                self._held = text
                return []
            self._begun, text = self._begun or bool(text), text.removeprefix(lead)
        tail = self._blanks[1] if part == "thought" else ""
        if closing:
            text = text.removesuffix(tail)
        elif tail and not ending:
            keep = next((n for n in range(len(tail), 0, -1) if text.endswith(tail[:n])), 0)
            text, self._held = (text[:-keep], text[-keep:]) if keep else (text, "")
        return [Delta(part, text)] if text else []
