"""Format and language of a completion, as R1 rewards them."""

import pytest

from schoolhouse.algorithms.format_rewards import has_format, language_consistency
from schoolhouse.data.chat import Conversation
from schoolhouse.types import Key, Message, Problem

PROBLEM = Problem("p", (Message("user", "what is 2+3?"),), "5")


@pytest.mark.parametrize(
    "text, stop, good",
    [
        ("<think>2+3=5</think>5", True, True),
        ("<think>2+3=5</think>5", False, False),
        ("<think>2+3=5</think>", True, False),
        ("<think></think>5", True, False),
        ("<think>2+3=5", True, False),
        ("5", True, False),
        ("x<think>2+3=5</think>5", True, False),
        ("<think>2+3=5</think>5<think>6</think>7", True, False),
        ("<think>2+3=5</think>5</think>", True, False),
    ],
)
def test_the_format_is_one_thought_then_one_answer(conversation: Conversation, text: str, stop: bool, good: bool):
    ids = conversation.tokenizer.encode(text, parse_special=True) + [conversation.stop_ids[0]] * stop
    rollout = conversation.prompt_rollout(PROBLEM, Key(0, "test")).append_sampled(
        ids, [-1.0] * len(ids), "stop" if stop else "length", 0
    )
    assert has_format(conversation, rollout) is good


def test_a_completion_without_a_thought_gets_no_language_reward():
    """Found in a run: half of the completions had no thought, and got the whole reward for language consistency."""
    thoughts = (None, "", " ", "7+5=12", "seven 五")
    assert [language_consistency(thought, "latin") for thought in thoughts] == [0, 0, 0, 1, 0.5]
