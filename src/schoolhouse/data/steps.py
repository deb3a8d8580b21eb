"""The steps of a thought, and the index at which each step ends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def step_ends(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[int]:
    """Return the end index (exclusive) of each complete step in the thought of the last turn.

    A step ends with the token that completes the delimiter. If the thought is complete, the text after the last
    delimiter is also a step. White space before a step belongs to the step. White space alone is not a step.
    """
    start, end, closed = conversation.thought_span(rollout)
    ends = []
    while length := _step_length(conversation, rollout.tokens[start:end], delimiter):
        start += length
        ends.append(start)
    if closed and conversation.tokenizer.decode(rollout.tokens[start:end]).strip():
        ends.append(end)
    return ends


def graded_step_ends(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[int]:
    """Return the token indices at which a process reward model gives a score.

    The indices are after each step and, if the turn is complete, also after the answer. The answer counts as the last
    step, because a thought can be right although the answer does not follow from the thought or
    comes too early.
    """
    ends = step_ends(conversation, rollout, delimiter)
    return [*ends, len(rollout)] if conversation.parse_completion(rollout).complete else ends


def steps(conversation: Conversation, rollout: Rollout, delimiter: str) -> list[str]:
    """Return the complete steps in the thought of the last turn, without white space around the steps."""
    ends = step_ends(conversation, rollout, delimiter)
    starts = [conversation.thought_span(rollout)[0], *ends]
    return [conversation.tokenizer.decode(rollout.tokens[a:b]).strip() for a, b in zip(starts, ends, strict=False)]


def _step_length(conversation: Conversation, ids: Sequence[int], delimiter: str) -> int:
    """Count the tokens up to and including the token that completes the delimiter. Leading white space is ignored.

    Returns 0 if the text does not contain the delimiter. The search doubles the length and then bisects, because tree
    search calls this function for every thought, and thoughts can be long.
    """

    def contains_delimiter(length: int) -> bool:
        return delimiter in conversation.tokenizer.decode(ids[:length]).lstrip()

    low, high = 0, 8
    while not contains_delimiter(high):
        if high >= len(ids):
            return 0
        low, high = high, 2 * high
    return bisect_left(range(min(high, len(ids))), True, low, key=contains_delimiter)
