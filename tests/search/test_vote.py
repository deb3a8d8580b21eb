"""Votes: the most frequent answer wins, or that of the largest worth in all."""

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from schoolhouse.search.vote import weighted_vote
from schoolhouse.types import Key, Problem, Rollout

PROBLEM = Problem("p", (), "1")


def said(policy: Any, *answers: str) -> list[Rollout]:
    say = policy.conversation
    told = []
    for at, answer in enumerate(answers):
        ids = say.tokenizer.encode(f"<think></think>{answer}<|im_end|>", parse_special=True)
        told.append(
            say.prompt_rollout(PROBLEM, Key(0, "t", 0, 0, at)).append_sampled(ids, [-0.1] * len(ids), "stop", 0)
        )
    return told


def vote(scripted: Callable[..., Any], answers: Sequence[str], worth: Sequence[float] | None = None) -> Any:
    policy = scripted(lambda *_: "")
    return weighted_vote(policy.conversation, said(policy, *answers), worth)


def test_the_most_frequent_answer_wins_however_it_is_written(scripted: Callable[..., Any]):
    winner, votes = vote(scripted, ["\\boxed{7}", "\\boxed{12}", "\\boxed{12.0}", "\\boxed{8}"])
    assert winner == 1
    assert [count for _, count in votes] == [2, 1, 1]


def test_a_weighted_vote_sums_what_answers_are_worth(scripted: Callable[..., Any]):
    answers, worth = ["\\boxed{7}", "\\boxed{12}", "\\boxed{12}"], [0.9, 0.3, 0.4]
    assert vote(scripted, answers, worth)[0] == 0
    assert vote(scripted, answers, [0.6, 0.3, 0.4])[0] == 2  # of those that agree the one worth most


def test_no_answer_never_wins_where_there_is_any(scripted: Callable[..., Any]):
    assert vote(scripted, ["well", "well", "\\boxed{3}"])[0] == 2
    winner, votes = vote(scripted, ["well", "well"])
    assert (winner, votes) == (0, ())


def test_a_worth_that_nobody_can_tell_counts_nothing(scripted: Callable[..., Any]):
    assert vote(scripted, ["\\boxed{7}", "\\boxed{8}"], [nan, 0.1])[0] == 1
