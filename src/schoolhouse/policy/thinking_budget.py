"""A thinking budget: a thought longer than the budget is closed, and the rest of the completion goes to the answer."""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def close_thought_at_budget(
    conversation: Conversation, rollout: Rollout, prompt_tokens: int, budget: int, max_new_tokens: int
) -> tuple[Rollout, int] | None:
    """The next turn of a rollout that was sampled up to its budget; None where its completion has ended.

    prompt_tokens   tokens before the completion
    budget          thinking tokens after which an open thought is closed
    max_new_tokens  tokens of the whole completion, its thought included
    """
    if rollout.finish_reason != "length" or len(rollout) - prompt_tokens != budget:
        return None
    closed = conversation.close_thought(rollout)
    return closed, max_new_tokens - (len(closed) - prompt_tokens)
