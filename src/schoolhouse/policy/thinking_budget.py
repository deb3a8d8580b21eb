"""A thinking budget limits the number of tokens in a thought.

A thought that reaches the budget is closed, and the answer follows.
"""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


def close_thought_at_budget(
    conversation: Conversation, rollout: Rollout, prompt_tokens: int, budget: int, max_new_tokens: int
) -> tuple[Rollout, int] | None:
    """Return the next turn of a rollout whose sampling stopped at the thinking budget.

    Returns None if the completion of the rollout has ended.

    `prompt_tokens`: the number of tokens before the completion.
    `budget`: the maximum number of tokens in a thought; a longer thought is closed.
    `max_new_tokens`: the maximum number of tokens of the whole completion, including its thought.
    """
    if rollout.finish_reason != "length" or len(rollout) - prompt_tokens != budget:
        return None
    closed = conversation.close_thought(rollout)
    return closed, max_new_tokens - (len(closed) - prompt_tokens)
