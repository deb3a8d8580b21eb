"""Fine-tuning on pairs of attempts: which pairs are kept, what of them is learned, and that a run resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import revision_sft
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.tasks.grading import grade
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import NAN, Group, Key, Rollout, SchoolError, Verdict

TASK = "school:chain?steps=2&styles=no_cot=100"  # ten answers: a model that only knows the form is right now and then


@pytest.fixture(scope="module")
def model(taught: Callable[[str], Path]) -> Path:
    return taught(f"{TASK}&revision_percent=50")


def config(model: Path, **changes: Any) -> revision_sft.Config:
    given: dict[str, Any] = {"task": TASK, "steps": 2, "num_prompts": 12, "samples_per_prompt": 8}
    given |= {"sampling.max_new_tokens": 16, "batch_size": 4, "save_every": 1}
    return revision_sft.Config.of(model=str(model), **{**given, **changes})


def train(folder: Path, c: revision_sft.Config) -> Run:
    with Run.open(folder, c, "revision_sft") as run:
        revision_sft.revision_sft(c, run)
    return run


def attempts(model: Path, *scores: float | None) -> tuple[Policy, Group]:
    """A group of answers `0`, `1`, ... with these scores."""
    policy = Policy.load(model)
    say, (problem,) = policy.conversation, open_task(TASK).train_problems(0, 1)
    asked = [say.prompt_rollout(problem, Key(0, "t", 0, 0, g)) for g in range(len(scores))]
    said = [replace(rollout, finish_reason="stop") for rollout in policy.extend(asked, 8)]
    verdicts = tuple(Verdict(s, "" if s is not None else "clock") for s in scores)
    return policy, Group(problem, tuple(said), verdicts)


def test_a_right_attempt_stands_behind_every_judged_one_and_is_another_where_there_is(model: Path):
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
    problem = open_task(TASK).train_problems(0, 1)[0]
    pair = Rollout(
        problem,
        Key(0, "t"),
        (1, 2, 3, 4, 5),
        (False, True, False, True, True),
        (NAN,) * 5,
        turns=(1, 3),
        finish_reason="stop",
    )
    alone = revision_sft.second_only(pair)
    assert alone.loss_mask == (False, False, False, True, True)
    assert (alone.tokens, alone.last_turn()) == (pair.tokens, (4, 5))


@pytest.mark.parametrize("pairs", ["star", "pair_sft"])
def test_pairs_are_scored_as_the_task_scores_them(model: Path, pairs: str):
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


def test_the_first_step_tells_what_was_kept_and_right_pairs_are_as_many(model: Path, tmp_path: Path):
    c = config(model, pairs="pair_sft", keep_correct=True)
    row = read_metrics(train(tmp_path / "run", c).folder)[0]
    assert 0 < row["kept_correct"] <= row["corrected"] <= row["pairs"] - row["kept_correct"]


def test_nothing_mended_is_an_error_that_says_what_to_do(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="was mended: ask more `problems`"):
        train(tmp_path / "run", config(model, **{"sampling.max_new_tokens": 1}, num_prompts=1))


def test_a_run_that_was_stopped_ends_in_the_same_numbers(model: Path, tmp_path: Path, stopped: Callable[..., None]):
    c = config(
        model, pairs="pair_sft", **{"optimizer.learning_rate": 0.05}, **{"optimizer.warmup_steps": 0}
    )  # so large that other weights say other things
    whole = train(tmp_path / "whole", c)
    stopped(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    again = train(tmp_path / "cut", c)
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_right_pairs_are_drawn_from_all_and_cut_off_ones_are_left(model: Path):
    _, group = attempts(model, *[0.0] * 3, *[1.0] * 20)
    scored = zip(group.rollouts, group.verdicts, strict=True)
    pairs = [revision_sft.Pair(said, verdict.reward or 0.0, 1.0) for said, verdict in scored]
    cut = replace(pairs[0].rollout, finish_reason="length")
    kept = revision_sft.choose_pairs(config(model, keep_correct=True), [*pairs, pairs[0]._replace(rollout=cut)])
    assert [pair.corrected for pair in kept] == [True] * 3 + [False] * 3
    assert kept[3:] != pairs[3:6]
    assert len(revision_sft.choose_pairs(config(model), pairs)) == 3
