"""Steps of a thought: where each ends, by the tokens as they were said."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def step_ends(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[int]:
    """The index behind each complete step of the last turn's thought.

    A step ends with the token that completes the delimiter; what stands behind the last one is a step where the thought
    was closed. Blanks in front of a step belong to it, and make none alone.
    """
    start, end, closed = conversation.thought_span(rollout)
    ends = []
    while more := _until(conversation, rollout.tokens[start:end], delimiter):
        start += more
        ends.append(start)
    if closed and conversation.tokenizer.decode(rollout.tokens[start:end]).strip():
        ends.append(end)
    return ends


def graded_step_ends(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[int]:
    """Where a judge of steps is asked: behind each complete step and, where the turn has ended, behind the answer.

    The answer is a step too, the last one: a thought may be right as far as it goes, and what it says in the end not
    follow from it, or be said too early.
    """
    return step_ends(conversation, rollout, delimiter) + ([len(rollout)] if conversation.parse_completion(rollout).complete else [])


def steps(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[str]:
    """The complete steps of the last turn's thought, without blanks around them."""
    ends = step_ends(conversation, rollout, delimiter)
    starts = [conversation.thought_span(rollout)[0], *ends]
    return [conversation.tokenizer.decode(rollout.tokens[a:b]).strip() for a, b in zip(starts, ends, strict=False)]


def _until(conversation: Conversation, ids: Sequence[int], delimiter: str) -> int:
    """How many of these tokens it takes until their text, blanks in front aside, holds the delimiter; 0: it never does.

    In strides that double, then by halves: who grows a tree asks this of every thought, and a thought may be long.
    """

    def holds(n: int) -> bool:
        return delimiter in conversation.tokenizer.decode(ids[:n]).lstrip()

    low, high = 0, 8
    while not holds(high):
        if high >= len(ids):
            return 0
        low, high = high, 2 * high
    return bisect_left(range(min(high, len(ids))), True, low, key=holds)
