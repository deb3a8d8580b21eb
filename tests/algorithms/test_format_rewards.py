"""Form and language of a reply, as R1 rewards them."""

import pytest

from schoolhouse.algorithms.format_rewards import has_format, language_consistency
from schoolhouse.data.chat import Conversation
from schoolhouse.types import Key, Message, Problem

PROBLEM = Problem("p", (Message("user", "what is 2+3?"),), "5")


@pytest.mark.parametrize(
    "said, stop, good",
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
def test_one_thought_then_one_answer_is_in_form(conversation: Conversation, said: str, stop: bool, good: bool) -> None:
    ids = conversation.tokenizer.encode(said, parse_special=True) + [conversation.stop_ids[0]] * stop
    rollout = conversation.prompt_rollout(PROBLEM, Key(0, "test")).append_sampled(
        ids, [-1.0] * len(ids), "stop" if stop else "length", 0
    )
    assert has_format(conversation, rollout) is good


def test_no_thought_is_in_no_language():
    """Found in a run: half of the answers had no thought, and the whole reward for keeping to one language."""
    assert [language_consistency(thought, "latin") for thought in (None, "", " ", "7+5=12", "seven 五")] == [
        0,
        0,
        0,
        1,
        0.5,
    ]
