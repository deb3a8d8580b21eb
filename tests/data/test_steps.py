"""Where steps of a thought end: found in strides and by halves, as if by looking behind every token."""

from collections.abc import Callable
from random import Random

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import step_ends, steps
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.types import Key, Message, Problem, Rollout

SAY = Conversation(train_tokenizer(["1+2=3 4+5=9 well so é→ü\n7-2=5 (4 5 9)\n"] * 3, 300))
ASKED = Problem("p", (Message("user", "1+2?"),), "3")


def thinking(thought: str) -> Rollout:
    begun = SAY.prompt_rollout(ASKED, Key(0, "t"))
    return SAY.close_thought(SAY.prefill_thought(begun, thought)) if thought else SAY.prefill_thought(begun, " ")


def one_by_one(rollout: Rollout, delimiter: str) -> list[int]:
    start, end, closed = SAY.thought_span(rollout)
    ends = []
    for at in range(start, end):
        if delimiter in SAY.tokenizer.decode(rollout.tokens[start : at + 1]).lstrip():
            ends.append(at + 1)
            start = at + 1
    return ends + ([end] if closed and SAY.tokenizer.decode(rollout.tokens[start:end]).strip() else [])


@pytest.mark.parametrize("delimiter", [" ", "\n", "→", "\n\n", "so"])
def test_steps_end_where_a_look_behind_every_token_finds_them(delimiter: str):
    random = Random(0)
    for _ in range(200):
        text = "".join(
            random.choice(["1+2=3", " ", "\n", "well", "so", "é→ü", "  "]) for _ in range(random.randrange(40))
        )
        rollout = thinking(text)
        assert step_ends(SAY, rollout, delimiter) == one_by_one(rollout, delimiter)


def test_a_long_thought_is_not_decoded_over_and_over(monkeypatch: pytest.MonkeyPatch):
    rollout = thinking("1+2=3 " * 200)
    read = 0
    decode: Callable[..., str] = SAY.tokenizer.decode

    def counted(ids, *given, **named):
        nonlocal read
        read += len(ids)
        return decode(ids, *given, **named)

    monkeypatch.setattr(SAY.tokenizer, "decode", counted)
    assert len(step_ends(SAY, rollout, " ")) == 200
    assert read < 60 * len(rollout)


def test_steps_are_told_without_blanks_around_them():
    assert steps(SAY, thinking("1+2=3\n  4+5=9 \n7-2=5"), "\n") == ["1+2=3", "4+5=9", "7-2=5"]
    assert steps(SAY, thinking(""), "\n") == []
