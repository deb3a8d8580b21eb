"""Budget forcing keeps every thought within its bounds; each revision reads the attempts before it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.search.budget_forcing import budget_force, revise
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout, SchoolError

Make = Callable[..., Any]


def prompts(policy: Any, game: Game24, count: int = 1) -> list[Rollout]:
    problem = game.eval_problems()[0]
    return [policy.conversation.prompt_rollout(problem, Key(0, "t", 0, 0, g)) for g in range(count)]


def short(question: str, begun: str, key: Key) -> str:
    """Thinks `1+1=2` and stops; the same again behind a wait text; answers when its thought is closed."""
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2</think>"


def endless(question: str, begun: str, key: Key) -> str:
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2 " * 60


def ends_turn(question: str, begun: str, key: Key) -> str:
    return "\\boxed{2}<|im_end|>" if "</think>" in begun else "1+1=2<|im_end|>"


@pytest.mark.parametrize("reply", [short, endless, ends_turn])
@pytest.mark.parametrize("min_think, max_think", [(0, 3), (0, 40), (20, 40), (38, 40), (40, 40)])
def test_every_thought_keeps_its_bounds_and_ends_in_an_answer(
    scripted: Make, game: Game24, reply: Any, min_think: int, max_think: int
):
    policy = scripted(reply)
    (forced,) = budget_force(policy, prompts(policy, game), min_think, max_think, answer_tokens=40, wait_text="W")
    completion = policy.conversation.parse_completion(forced.rollout)
    assert completion.answer == "\\boxed{2}"
    assert min_think <= policy.conversation.thought_length(forced.rollout) <= max_think


def test_a_thought_that_ends_too_early_continues_behind_the_wait_text(scripted: Make, game: Game24):
    policy = scripted(short)
    (forced,) = budget_force(policy, prompts(policy, game), 12, 40, answer_tokens=40, wait_text=" W ")
    thought = policy.conversation.parse_completion(forced.rollout).thought
    assert thought.startswith("1+1=2 W 1+1=2")
    assert len(forced.rollout.turns) == 1


def test_removed_tokens_are_counted(scripted: Make, game: Game24):
    policy = scripted(short)
    (forced,) = budget_force(policy, prompts(policy, game), 12, 40, answer_tokens=40, wait_text="W")
    assert forced.tokens > sum(forced.rollout.loss_mask)
    (free,) = budget_force(policy, prompts(policy, game), 0, 40, answer_tokens=40)
    assert free.tokens == sum(free.rollout.loss_mask)


def test_the_wait_text_is_never_trained_on(scripted: Make, game: Game24):
    policy = scripted(short)
    (forced,) = budget_force(policy, prompts(policy, game), 12, 40, answer_tokens=40, wait_text="W")
    wait_id = policy.conversation.tokenizer.encode("W")[0]
    places = [i for i, token in enumerate(forced.rollout.tokens) if token == wait_id]
    assert places
    assert not any(forced.rollout.loss_mask[i] for i in places)


def test_several_problems_keep_their_order(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: short(q, b, k) if k.sample % 2 else endless(q, b, k))
    results = budget_force(policy, prompts(policy, game, 4), 0, 30, answer_tokens=40)
    assert [result.rollout.key.sample for result in results] == [0, 1, 2, 3]


def test_every_attempt_stands_behind_the_attempts_before_it(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: f"<think></think>\\boxed{{{k.turn}}}<|im_end|>")
    (chain,) = revise(policy, prompts(policy, game), rounds=3, max_new_tokens=30)
    answers = [policy.conversation.parse_completion(rollout).answer for rollout in chain]
    assert answers == ["\\boxed{0}", "\\boxed{1}", "\\boxed{2}"]
    assert all(b.tokens[: len(a)] == a.tokens for a, b in pairwise(chain))


def test_without_room_there_are_fewer_attempts(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "<think></think>\\boxed{1}<|im_end|>")
    policy.max_seq_len = len(prompts(policy, game)[0]) + 40
    (chain,) = revise(policy, prompts(policy, game), rounds=3, max_new_tokens=30)
    assert len(chain) == 1


def test_bounds_without_room_for_the_wait_text_are_refused(scripted: Make, game: Game24):
    policy = scripted(short)
    message = r"has 5 tokens, which do not fit between `min_think` \(30\) and `max_think` \(32\): raise .* to 34"
    with pytest.raises(SchoolError, match=message):
        budget_force(policy, prompts(policy, game), 30, 32, answer_tokens=9, wait_text="WWWWW")


def test_an_empty_wait_text_is_refused(scripted: Make, game: Game24):
    policy = scripted(short)
    with pytest.raises(SchoolError, match="`wait_text` is empty"):
        budget_force(policy, prompts(policy, game), 12, 40, answer_tokens=40, wait_text="")


OPENS_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
"""A template like DeepSeek-R1's: the prompt itself opens the thought."""


@pytest.mark.parametrize("first", ["</think>", "<|im_end|>"])
@pytest.mark.parametrize("min_think", [0, 8])
def test_a_thought_that_the_prompt_opens_may_end_at_once(scripted: Make, game: Game24, first: str, min_think: int):
    policy = scripted(lambda question, begun, key: "\\boxed{2}<|im_end|>" if "</think>" in begun else first)
    policy.conversation = Conversation(policy.conversation.tokenizer, OPENS_THOUGHT)
    (forced,) = budget_force(policy, prompts(policy, game), min_think, 20, answer_tokens=40, wait_text="Wait")
    assert policy.conversation.parse_completion(forced.rollout).answer == "\\boxed{2}"
    assert min_think <= policy.conversation.thought_length(forced.rollout) <= 20
    assert len(forced.rollout.turns) == 1
