"""Fine-tuning on pairs of attempts: which pairs are kept, what of them is learned, and that a run resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import revision_sft
from schoolhouse.runs.run import read_metrics
from schoolhouse.tasks.grading import grade
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import NAN, Group, Key, Rollout, SchoolError
from tiny_groups import verdict
from tiny_runs import metrics_text, train

TASK = "school:chain?steps=2&styles=no_cot=100"  # ten answers: a model that knows the format is right now and then


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(f"{TASK}&revision_percent=50")


def config(model: Path, **keys: Any) -> revision_sft.Config:
    defaults: dict[str, Any] = {"task": TASK, "steps": 2, "num_prompts": 12, "samples_per_prompt": 8}
    defaults |= {"sampling.max_new_tokens": 16, "batch_size": 4, "save_every": 1}
    return revision_sft.Config.of(model=str(model), **{**defaults, **keys})


def attempts(model: Path, *rewards: float | None) -> tuple[Policy, Group]:
    """A policy, and a group of its complete attempts with these rewards."""
    policy = Policy.load(model)
    conversation, (problem,) = policy.conversation, open_task(TASK).train_problems(0, 1)
    prompts = [conversation.prompt_rollout(problem, Key(0, "t", 0, 0, g)) for g in range(len(rewards))]
    rollouts = tuple(replace(rollout, finish_reason="stop") for rollout in policy.extend(prompts, 8))
    return policy, Group(problem, rollouts, tuple(map(verdict, rewards)))


# --- pairs


def test_each_graded_attempt_is_followed_by_another_right_one(model: Path):
    policy, group = attempts(model, 0.0, 1.0, None, 1.0)
    pairs = revision_sft.pair_up(group, policy.conversation, "Look again.")
    assert [(pair.first, pair.second) for pair in pairs] == [(0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]
    first, second, fourth = group.rollouts[0], group.rollouts[1], group.rollouts[3]
    assert [pair.rollout.last_turn() for pair in pairs] == [second.last_turn(), fourth.last_turn(), second.last_turn()]
    assert pairs[0].rollout.tokens[: len(first)] == first.tokens


def test_without_a_right_attempt_there_are_no_pairs(model: Path):
    policy, group = attempts(model, 0.0, 0.0)
    assert revision_sft.pair_up(group, policy.conversation, "Look again.") == []


def test_only_the_second_attempt_is_learned():
    (problem,) = open_task(TASK).train_problems(0, 1)
    mask = (False, True, False, True, True)
    pair = Rollout(problem, Key(0, "t"), (1, 2, 3, 4, 5), mask, (NAN,) * 5, turns=(1, 3), finish_reason="stop")
    second = revision_sft.second_only(pair)
    assert second.loss_mask == (False, False, False, True, True)
    assert (second.tokens, second.last_turn()) == (pair.tokens, (4, 5))


def test_correct_pairs_are_drawn_from_all_and_truncated_ones_are_left_out(model: Path):
    _, group = attempts(model, *[0.0] * 3, *[1.0] * 20)
    graded = zip(group.rollouts, group.verdicts, strict=True)
    pairs = [revision_sft.Pair(rollout, verdict.reward or 0.0, 1.0) for rollout, verdict in graded]
    truncated = pairs[0]._replace(rollout=replace(pairs[0].rollout, finish_reason="length"))
    kept = revision_sft.choose_pairs(config(model, keep_correct=True), [*pairs, truncated])
    assert [pair.corrected for pair in kept] == [True] * 3 + [False] * 3
    assert kept[3:] != pairs[3:6]
    assert len(revision_sft.choose_pairs(config(model), pairs)) == 3


# --- sampling


@pytest.mark.parametrize("pairs", ["star", "pair_sft"])
def test_pairs_have_the_rewards_of_the_task(model: Path, pairs: str):
    policy, task = Policy.load(model), open_task(TASK)
    found, tokens = revision_sft.sample_pairs(config(model, pairs=pairs), policy, task)
    groups = grade([pair.rollout for pair in found], task, policy.conversation.parse_completion)
    assert [verdict.reward for group in groups for verdict in group.verdicts] == [pair.second for pair in found]
    assert any(pair.second == 1.0 for pair in found)
    assert all(len(pair.rollout.turns) == 2 for pair in found)
    assert tokens >= sum(sum(pair.rollout.loss_mask) for pair in found) * (pairs == "star")


def test_tokens_of_problems_without_a_right_attempt_count_too(model: Path):
    policy, task = Policy.load(model), open_task(TASK)
    c = config(model, pairs="pair_sft", **{"sampling.max_new_tokens": 1})
    found, tokens = revision_sft.sample_pairs(c, policy, task)
    assert (found, tokens) == ([], c.num_prompts * c.samples_per_prompt)


# --- runs


def test_the_first_step_records_what_was_kept(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model, pairs="pair_sft", keep_correct=True)).folder)
    assert 0 < rows[0]["kept_correct"] <= rows[0]["corrected"] <= rows[0]["pairs"] - rows[0]["kept_correct"]
    assert "pairs" not in rows[1]


def test_a_run_without_a_corrected_pair_is_refused(model: Path, tmp_path: Path):
    message = "none of 8 second attempts corrects its first attempt: raise `num_prompts` or `samples_per_prompt`"
    with pytest.raises(SchoolError, match=message):
        train(tmp_path / "run", config(model, num_prompts=1, **{"sampling.max_new_tokens": 1}))


def test_an_interrupted_run_resumes_to_the_same_numbers(model: Path, tmp_path: Path, interrupted: Callable[..., None]):
    """At a learning rate so large that pairs sampled again from later weights would be others."""
    c = config(model, pairs="pair_sft", **{"optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 0})
    whole = train(tmp_path / "whole", c)
    interrupted(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    assert metrics_text(train(tmp_path / "cut", c)) == metrics_text(whole)
