"""A thinking budget: a thought that outgrows it is closed, and what is left of the completion goes to the answer."""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def close_thought_at_budget(
    conversation: Conversation, ended: Rollout, prompt_tokens: int, budget: int, max_new_tokens: int
) -> tuple[Rollout, int] | None:
    """The next turn of a rollout that was sampled up to its thinking budget; None where its completion has ended.

    prompt_tokens   length of the prefix that the completion began with
    budget          tokens after which an open thought is closed
    max_new_tokens  tokens of the whole completion, its thought included
    """
    if ended.finish_reason != "length" or len(ended) - prompt_tokens != budget:
        return None
    closed = conversation.close_thought(ended)
    return closed, max_new_tokens - (len(closed) - prompt_tokens)
