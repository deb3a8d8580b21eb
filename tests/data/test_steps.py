"""The ends of steps of a thought: bisection finds what a look behind every token finds."""

from collections.abc import Callable
from random import Random

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import step_ends, steps
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.types import Key, Message, Problem, Rollout

CONVERSATION = Conversation(train_tokenizer(["1+2=3 4+5=9 well so é→ü\n7-2=5 (4 5 9)\n"] * 3, 300))
PROBLEM = Problem("p", (Message("user", "1+2?"),), "3")


def thinking(thought: str) -> Rollout:
    prompt = CONVERSATION.prompt_rollout(PROBLEM, Key(0, "t"))
    rollout = CONVERSATION.prefill_thought(prompt, thought or " ")
    return CONVERSATION.close_thought(rollout) if thought else rollout


def one_by_one(rollout: Rollout, delimiter: str) -> list[int]:
    start, end, closed = CONVERSATION.thought_span(rollout)
    ends = []
    for at in range(start, end):
        if delimiter in CONVERSATION.tokenizer.decode(rollout.tokens[start : at + 1]).lstrip():
            ends.append(at + 1)
            start = at + 1
    return ends + ([end] if closed and CONVERSATION.tokenizer.decode(rollout.tokens[start:end]).strip() else [])


@pytest.mark.parametrize("delimiter", [" ", "\n", "→", "\n\n", "so"])
def test_step_ends_equal_a_look_behind_every_token(delimiter: str):
    random = Random(0)
    for _ in range(200):
        text = "".join(
            random.choice(["1+2=3", " ", "\n", "well", "so", "é→ü", "  "]) for _ in range(random.randrange(40))
        )
        rollout = thinking(text)
        assert step_ends(CONVERSATION, rollout, delimiter) == one_by_one(rollout, delimiter)


def test_a_long_thought_is_not_decoded_over_and_over(monkeypatch: pytest.MonkeyPatch):
    rollout = thinking("1+2=3 " * 200)
    decoded_tokens = 0
    decode: Callable[..., str] = CONVERSATION.tokenizer.decode

    def counting_decode(ids, *arguments, **options):
        nonlocal decoded_tokens
        decoded_tokens += len(ids)
        return decode(ids, *arguments, **options)

    monkeypatch.setattr(CONVERSATION.tokenizer, "decode", counting_decode)
    assert len(step_ends(CONVERSATION, rollout, " ")) == 200
    assert decoded_tokens < 60 * len(rollout)


def test_steps_have_no_blanks_around_them():
    assert steps(CONVERSATION, thinking("1+2=3\n  4+5=9 \n7-2=5"), "\n") == ["1+2=3", "4+5=9", "7-2=5"]
    assert steps(CONVERSATION, thinking(""), "\n") == []
