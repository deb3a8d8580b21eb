"""Votes: the most frequent answer wins, or the one with the largest total value."""

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from schoolhouse.search.vote import weighted_vote
from schoolhouse.types import Key, Problem, Rollout

PROBLEM = Problem("p", (), "1")


def completions(policy: Any, answers: Sequence[str]) -> list[Rollout]:
    rollouts = []
    for at, answer in enumerate(answers):
        ids = policy.conversation.tokenizer.encode(f"<think></think>{answer}<|im_end|>", parse_special=True)
        prompt = policy.conversation.prompt_rollout(PROBLEM, Key(0, "t", 0, 0, at))
        rollouts.append(prompt.append_sampled(ids, [-0.1] * len(ids), "stop", 0))
    return rollouts


def vote(scripted: Callable[..., Any], answers: Sequence[str], values: Sequence[float] | None = None) -> Any:
    policy = scripted(lambda *_: "")
    return weighted_vote(policy.conversation, completions(policy, answers), values)


def test_the_most_frequent_answer_wins_however_it_is_written(scripted: Callable[..., Any]):
    winner, votes = vote(scripted, ["\\boxed{7}", "\\boxed{12}", "\\boxed{12.0}", "\\boxed{8}"])
    assert winner == 1
    assert [count for _, count in votes] == [2, 1, 1]


def test_a_weighted_vote_sums_the_values_of_equal_answers(scripted: Callable[..., Any]):
    answers = ["\\boxed{7}", "\\boxed{12}", "\\boxed{12}"]
    assert vote(scripted, answers, [0.9, 0.3, 0.4])[0] == 0
    assert vote(scripted, answers, [0.6, 0.3, 0.4])[0] == 2  # of the two that agree, the one with the larger value


def test_a_missing_answer_wins_only_where_all_are_missing(scripted: Callable[..., Any]):
    assert vote(scripted, ["well", "well", "\\boxed{3}"])[0] == 2
    winner, votes = vote(scripted, ["well", "well"])
    assert (winner, votes) == (0, ())


def test_an_unknown_value_weighs_nothing(scripted: Callable[..., Any]):
    assert vote(scripted, ["\\boxed{7}", "\\boxed{8}"], [nan, 0.1])[0] == 1
