"""Decode a completion while it is sampled. After each token, the decoder returns the new text.

Together, all returned pieces are the text that `Conversation.parse_completion` returns.
"""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_marks import Delta, MarkSplitter, PartText, answer_part, first_part, thought_part
from schoolhouse.data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # the decoder returns this for bytes of an incomplete character


class TextDecoder:
    """Decode a growing list of ids. A character is returned as soon as all of its bytes are known."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context_start = self._returned = 0  # first id to decode again; number of ids whose text was returned

    def push(self, token: int) -> str:
        """Add a token, and return the new text that this token completes."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._context_start : self._returned])
        text = self._tokenizer.decode(self._ids[self._context_start :])
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._returned < 4:  # bytes of an incomplete character
            return ""
        self._context_start, self._returned = self._returned, len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        """Return the rest of the text, which was not returned before because it ends with an incomplete character."""
        before = self._tokenizer.decode(self._ids[self._context_start : self._returned])
        return self._tokenizer.decode(self._ids[self._context_start :])[len(before) :]


class StreamDecoder:
    """Decode one turn token by token. White space around the thought is left out, as in `parse_completion`.

    The result differs from `parse_completion` in one case: if text comes before `<think>`, this text has already been
    returned as the answer, so all later text belongs to the answer too.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._stop_ids, self._format = conversation.stop_ids, conversation.thought_format
        self._tokenizer = conversation.tokenizer
        self._marks = None if self._format.by_ids else MarkSplitter(self._format)
        self._part = first_part(self._format)
        self._decoder = TextDecoder(self._tokenizer)
        self._opening = ""  # text that may precede a thought
        self._complete = False

    def push(self, token: int) -> list[Delta]:
        """Add a token of the turn, and return the text that this token adds."""
        if token in self._stop_ids:
            self._complete = True
            return []
        if self._marks:
            return self._marks.push(self._decoder.push(token))
        if token == self._format.start_id and self._part is None:
            self._start_part(thought_part(self._format))
            return []
        if token == self._format.end_id and self._part and self._part.name == "thought":
            last = self._part.push(self._decoder.flush(), last=True, complete=True)
            self._start_part(answer_part(self._format, after_thought=True))
            return last
        text = self._decoder.push(token)
        if self._part is None:
            text = self._opening = self._opening + text
            if self._format.prefix and self._format.prefix.startswith(text):  # a thought may follow
                return []
            self._part = answer_part(self._format, after_thought=False)
        return self._part.push(text)

    def flush(self) -> list[Delta]:
        """End the turn, and return the text that was not returned before."""
        text = self._decoder.flush()
        if self._marks:
            return self._marks.push(text, ending=True, complete=self._complete)
        if self._part is None:
            text = self._opening + text
            self._part = answer_part(self._format, after_thought=False)
        return self._part.push(text, last=True, complete=self._complete and self._part.name == "answer")

    def _start_part(self, part: PartText) -> None:
        self._part, self._decoder = part, TextDecoder(self._tokenizer)
