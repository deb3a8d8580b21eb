"""Rewards for the format of a completion. Format rewards do not depend on whether the answer is right.

The file contains two rewards of DeepSeek-R1 (Guo et al. 2025, arXiv 2501.12948): format and language consistency.
"""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.data.scripts import script_share
from schoolhouse.types import Rollout


def has_format(conversation: Conversation, rollout: Rollout) -> bool:
    """Check the format of a completion: one thought at the start, one answer after the thought, then the end of the
    turn.

    DeepSeek-R1 calls this check the format reward (section 2.2.2 of its paper).
    """
    text = conversation.tokenizer.decode(rollout.last_turn())
    completion = conversation.parse_completion(rollout)
    style = conversation.thought_format
    one_thought = [text.count(style.start), text.count(style.end)] == [0 if style.opened_by_prompt else 1, 1]
    thought_first = style.opened_by_prompt or text.lstrip().startswith(style.start)
    both_parts = all(part and part.strip() for part in (completion.thought, completion.answer))
    return one_thought and thought_first and completion.complete and both_parts


def language_consistency(thought: str | None, script: str) -> float:
    """The fraction of the words of a thought that are written in the writing system `script` (DeepSeek-R1's paper,
    section 2.3.2).

    An empty thought gets 0, so that the policy cannot get the full reward by writing no thought.
    """
    return script_share(thought, script) if thought and thought.strip() else 0.0
