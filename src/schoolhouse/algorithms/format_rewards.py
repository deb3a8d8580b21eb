"""Rewards for the format of a completion, whether the answer is right or wrong: DeepSeek-R1's format and language
consistency.

Guo et al. 2025, arXiv 2501.12948.
"""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.data.scripts import script_share
from schoolhouse.types import Rollout


def has_format(conversation: Conversation, rollout: Rollout) -> bool:
    """The format reward (section 2.2.2): one thought at the start, then one answer, then the end of the turn."""
    text = conversation.tokenizer.decode(rollout.last_turn())
    completion = conversation.parse_completion(rollout)
    style = conversation.thought_format
    one_thought = [text.count(style.start), text.count(style.end)] == [0 if style.opened_by_prompt else 1, 1]
    thought_first = style.opened_by_prompt or text.lstrip().startswith(style.start)
    both_parts = all(part and part.strip() for part in (completion.thought, completion.answer))
    return one_thought and thought_first and completion.complete and both_parts


def language_consistency(thought: str | None, script: str) -> float:
    """The reward for one language (section 2.3.2): the fraction of a thought's words in a script.

    An empty thought gets 0. Otherwise an empty thought would be the easiest way to get this reward.
    """
    return script_share(thought, script) if thought and thought.strip() else 0.0
