"""Budget forcing keeps every thought within its bounds; revision reads what was said before."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.search.budget_forcing import budget_force, revise
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout, SchoolError

Make = Callable[..., Any]


def begin(policy: Any, game: Game24, count: int = 1) -> list[Rollout]:
    return [policy.conversation.prompt_rollout(game.eval_problems()[0], Key(0, "t", 0, 0, g)) for g in range(count)]


def short(question: str, begun: str, key: Key) -> str:
    """Thinks `1+1=2`, stops, thinks the same again when it is made to wait; answers when its thought is closed."""
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2</think>"


def endless(question: str, begun: str, key: Key) -> str:
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2 " * 60


def leaving(question: str, begun: str, key: Key) -> str:
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2<|im_end|>"


@pytest.mark.parametrize("habit", [short, endless, leaving])
@pytest.mark.parametrize("least, most", [(0, 3), (0, 40), (20, 40), (38, 40), (40, 40)])
def test_every_thought_keeps_its_bounds_and_ends_in_an_answer(
    scripted: Make, game: Game24, habit: Any, least: int, most: int
):
    policy = scripted(habit)
    (one,) = budget_force(policy, begin(policy, game), least, most, answer_tokens=40, wait_text="W")
    reply = policy.conversation.parse_completion(one.rollout)
    assert reply.answer == "\\boxed{2}"
    assert least <= policy.conversation.thought_length(one.rollout) <= most


def test_a_thought_that_ends_too_early_is_made_to_wait(scripted: Make, game: Game24):
    policy = scripted(short)
    (one,) = budget_force(policy, begin(policy, game), 12, 40, answer_tokens=40, wait_text=" W ")
    thought = policy.conversation.parse_completion(one.rollout).thought
    assert thought.startswith("1+1=2 W 1+1=2")
    assert len(one.rollout.turns) == 1


def test_tokens_that_were_taken_back_are_counted(scripted: Make, game: Game24):
    policy = scripted(short)
    (one,) = budget_force(policy, begin(policy, game), 12, 40, answer_tokens=40, wait_text="W")
    assert one.tokens > sum(one.rollout.loss_mask)
    (free,) = budget_force(policy, begin(policy, game), 0, 40, answer_tokens=40)
    assert free.tokens == sum(free.rollout.loss_mask)


def test_words_that_were_forced_are_never_trained_on(scripted: Make, game: Game24):
    policy = scripted(short)
    (one,) = budget_force(policy, begin(policy, game), 12, 40, answer_tokens=40, wait_text="W")
    word = policy.conversation.tokenizer.encode("W")[0]
    at = [i for i, token in enumerate(one.rollout.tokens) if token == word]
    assert at
    assert not any(one.rollout.loss_mask[i] for i in at)


def test_several_problems_keep_their_order(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: short(q, b, k) if k.sample % 2 else endless(q, b, k))
    spent = budget_force(policy, begin(policy, game, 4), 0, 30, answer_tokens=40)
    assert [one.rollout.key.sample for one in spent] == [0, 1, 2, 3]


def test_every_attempt_stands_behind_those_before_it(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: f"<think></think>\\boxed{{{k.turn}}}<|im_end|>")
    (chain,) = revise(policy, begin(policy, game), rounds=3, max_new_tokens=30)
    assert [policy.conversation.parse_completion(rollout).answer for rollout in chain] == [
        "\\boxed{0}",
        "\\boxed{1}",
        "\\boxed{2}",
    ]
    assert all(b.tokens[: len(a)] == a.tokens for a, b in pairwise(chain))


def test_without_room_there_are_fewer_attempts(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "<think></think>\\boxed{1}<|im_end|>")
    policy.max_seq_len = len(begin(policy, game)[0]) + 40
    (chain,) = revise(policy, begin(policy, game), rounds=3, max_new_tokens=30)
    assert len(chain) == 1


def test_bounds_that_cannot_be_kept_are_refused(scripted: Make, game: Game24):
    policy = scripted(short)
    with pytest.raises(
        SchoolError, match="`wait` takes 5 tokens: let there be as many between `least` 30 and `most` 32"
    ):
        budget_force(policy, begin(policy, game), 30, 32, answer_tokens=9, wait_text="WWWWW")


def test_an_empty_word_that_would_wait_for_ever_is_refused(scripted: Make, game: Game24):
    policy = scripted(short)
    with pytest.raises(SchoolError, match="`wait` is empty"):
        budget_force(policy, begin(policy, game), 12, 40, answer_tokens=40, wait_text="")


OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
"""A template in the manner of DeepSeek-R1's: the prompt itself opens the thought."""


@pytest.mark.parametrize("begins", ["</think>", "<|im_end|>"])
@pytest.mark.parametrize("least", [0, 8])
def test_a_thought_that_the_prompt_opens_may_end_at_once(scripted: Make, game: Game24, begins: str, least: int):
    policy = scripted(lambda question, begun, key: "\\boxed{2}<|im_end|>" if "</think>" in begun else begins)
    policy.conversation = Conversation(policy.conversation.tokenizer, OPENING)
    (one,) = budget_force(policy, begin(policy, game), least, 20, answer_tokens=40, wait_text="Wait")
    assert policy.conversation.parse_completion(one.rollout).answer == "\\boxed{2}"
    assert least <= policy.conversation.thought_length(one.rollout) <= 20
    assert len(one.rollout.turns) == 1
