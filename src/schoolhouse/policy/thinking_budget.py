"""A thinking budget: a thought that reaches the budget is closed. The rest of the completion is for the answer."""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def close_thought_at_budget(
    conversation: Conversation, rollout: Rollout, prompt_tokens: int, budget: int, max_new_tokens: int
) -> tuple[Rollout, int] | None:
    """The next turn of a rollout that was sampled up to its budget. None if the completion of the rollout has ended.

    prompt_tokens   number of tokens before the completion
    budget          number of thinking tokens after which an open thought is closed
    max_new_tokens  maximum number of tokens of the whole completion, including its thought
    """
    if rollout.finish_reason != "length" or len(rollout) - prompt_tokens != budget:
        return None
    closed = conversation.close_thought(rollout)
    return closed, max_new_tokens - (len(closed) - prompt_tokens)
