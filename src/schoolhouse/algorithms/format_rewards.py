"""How a reply is said, right or wrong: what DeepSeek-R1 rewards beside accuracy (Guo et al., arXiv 2501.12948)."""

from __future__ import annotations

from schoolhouse.data.chat import Conversation
from schoolhouse.data.scripts import share_in
from schoolhouse.data.tokenizer import END_THINK, THINK
from schoolhouse.types import Rollout


def has_format(say: Conversation, rollout: Rollout) -> bool:
    """The format reward (section 2.2.2): one thought, first of all, then one answer, and the end of the turn."""
    text, reply = say.tokenizer.decode(rollout.last_turn()), say.parse_completion(rollout)
    prompt_opens = say.thought_marks[2]
    once = [text.count(THINK), text.count(END_THINK)] == [0 if prompt_opens else 1, 1]
    first = prompt_opens or text.lstrip().startswith(THINK)
    return once and first and reply.complete and all(part and part.strip() for part in (reply.thought, reply.answer))


def language_consistency(thought: str | None, script: str) -> float:
    """The reward for one language (section 2.3.2): the share of a thought's words that are in it. No thought earns
    none, or thinking nothing is the easiest way to be pure."""
    return share_in(thought, script) if thought and thought.strip() else 0.0
