"""Decode a completion while it is sampled. After each token, the decoder returns the new text.

Together, all returned pieces are the text that `Conversation.parse_completion` returns.
"""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_marks import Delta, MarkSplitter, Part, overlap
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
        self._conversation = conversation
        self._format = conversation.thought_format
        self._marks = None if self._format.by_ids else MarkSplitter(self._format)
        self._complete = False
        self._part: Part | None = "thought" if self._format.opened_by_prompt else None
        self._after_thought = False
        self._decoder = TextDecoder(conversation.tokenizer)
        self._begun, self._held = False, ""  # whether this part has returned text; text that may be blanks to drop

    def push(self, token: int) -> list[Delta]:
        """Add a token of the turn, and return the text that this token adds."""
        if token in self._conversation.stop_ids:
            self._complete = True
            return []
        if self._marks:
            return self._marks.push(self._decoder.push(token))
        if token == self._format.start_id and self._part is None:
            self._start_part("thought")
            return []
        if token == self._format.end_id and self._part == "thought":
            last = self._deltas(self._decoder.flush(), closing=True)
            self._start_part("answer")
            return last
        if self._part is None and self._format.prefix:
            self._held += self._decoder.push(token)
            if self._format.prefix.startswith(self._held):  # a thought may follow
                return []
            self._part = "answer"
            return self._deltas("")
        self._part = self._part or "answer"
        return self._deltas(self._decoder.push(token))

    def flush(self) -> list[Delta]:
        """End the turn, and return the text that was not returned before."""
        if self._marks:
            return self._marks.push(self._decoder.flush(), ending=True, complete=self._complete)
        self._part = self._part or ("answer" if self._held else None)
        return self._deltas(self._decoder.flush(), ending=True)

    def _start_part(self, part: Part) -> None:
        self._part, self._begun, self._held = part, False, ""
        self._decoder = TextDecoder(self._conversation.tokenizer)
        self._after_thought = part == "answer"

    def _deltas(self, text: str, closing: bool = False, ending: bool = False) -> list[Delta]:
        part = self._part
        if part is None:
            return []
        text = self._held + text
        self._held = ""
        after = self._format.between if self._after_thought else self._format.lead
        prefix = self._format.before if part == "thought" else after
        if not self._begun:
            if prefix and not (closing or ending) and prefix.startswith(text) and text != prefix:
                self._held = text
                return []
            self._begun, text = bool(text), text.removeprefix(prefix)
        suffix = self._format.after if part == "thought" else self._format.ending
        if closing or (ending and part == "answer" and self._complete):
            text = text.removesuffix(suffix)
        elif suffix and not ending:
            held = overlap(text, suffix)
            text, self._held = (text[:-held], text[-held:]) if held else (text, "")
        return [Delta(part, text)] if text else []
