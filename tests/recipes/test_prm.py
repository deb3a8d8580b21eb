"""Reward models: the examples they learn from, that they learn right from wrong, and the controls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import prm
from schoolhouse.reward_models.examples import Example, read_examples, sequence_example, shuffle_labels, step_example
from schoolhouse.reward_models.step_labels import LabelledSolution, read_prm800k, write_prm800k
from schoolhouse.runs.run import read_metrics
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, Rollout, SchoolError
from tiny_runs import metrics_text, train

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(TASK)


def config(model: Path, **keys: Any) -> prm.Config:
    defaults: dict[str, Any] = {
        "model": str(model),
        "generator": "" if "data" in keys else str(model),
        "task": TASK,
        "steps": 2,
        "batch_size": 8,
        "num_prompts": 8,
        "samples_per_prompt": 2,
        "sampling.max_new_tokens": 40,
        "continuations": 2,
    }
    return prm.Config.of(**{**defaults, **keys})


def demonstration(model: Path) -> tuple[Policy, Rollout]:
    """A policy, and a demonstration of two steps as its rollout."""
    policy = Policy.load(model)
    (example,) = open_task(TASK).demonstrations(0, 1)
    return policy, policy.conversation.demonstration_rollout(example, Key(0, "t"))


def labelled(*labels: float | None) -> LabelledSolution:
    return LabelledSolution("q", tuple("ab"[: len(labels)]), labels)


def targets_of(examples: Sequence[Example]) -> list[float]:
    """All targets that are not nan."""
    return [target for example in examples for target in example.target if target == target]


# --- examples


def test_only_steps_with_a_label_are_learned_and_the_last_of_them_ends_the_example(model: Path):
    policy, rollout = demonstration(model)
    both = step_example(policy.conversation, rollout, labelled(1.0, -1.0), " ", "steps")
    first = step_example(policy.conversation, rollout, labelled(1.0), " ", "steps")
    second = step_example(policy.conversation, rollout, labelled(None, -1.0), " ", "steps")
    assert targets_of([both]) == [1.0, 0.0]
    assert targets_of([first]) == [1.0]
    assert first.rollout.tokens == both.rollout.tokens[: len(first.rollout)]
    assert sum(second.rollout.loss_mask) == 1
    assert second.target[-1] == 0.0


def test_a_file_becomes_examples_as_the_reward_model_will_be_asked(model: Path, tmp_path: Path):
    """Label tokens stand behind the delimiter of each step, whatever a step holds. The last step is the answer."""
    conversation = Policy.load(model).conversation
    right, wrong = ("We add two", "Then so on"), ("We add two", "It is\n\nbad")
    solutions = [LabelledSolution("q", right, (1.0, 0.0)), LabelledSolution("q", wrong, (1.0, -1.0), complete=False)]
    write_prm800k(tmp_path / "labels.jsonl", solutions)
    examples = [example for _, example in read_examples(tmp_path / "labels.jsonl", conversation, "\n")]
    texts = [conversation.tokenizer.decode(one.rollout.tokens).partition("<think>")[2] for one in examples]
    assert texts == ["We add two\n+</think>Then so on<|im_end|>+", "We add two\n+It is\n\nbad\n+"]
    assert [targets_of([example]) for example in examples] == [[1.0, 1.0], [1.0, 0.0]]
    assert all(sum(example.rollout.loss_mask) == 2 for example in examples)


def test_shuffled_labels_are_the_same_ones_at_other_steps(model: Path):
    policy, rollout = demonstration(model)
    examples = [
        step_example(policy.conversation, rollout, labelled(1.0, float(-(i % 2))), " ", "steps") for i in range(40)
    ]
    shuffled = shuffle_labels(examples, 0)
    assert sorted(targets_of(shuffled)) == sorted(targets_of(examples))
    assert targets_of(shuffled) != targets_of(examples)
    assert [example.rollout for example in shuffled] == [example.rollout for example in examples]


def test_shuffled_outcomes_stay_whole(model: Path):
    _, rollout = demonstration(model)
    examples = [sequence_example(rollout, labelled(float(1 - 2 * (i % 2))), [0.0] * len(rollout)) for i in range(20)]
    outcomes = [set(targets_of([example])) for example in shuffle_labels(examples, 0)]
    assert all(len(outcome) == 1 for outcome in outcomes)
    assert sum(outcome == {1.0} for outcome in outcomes) == 10
    assert outcomes != [set(targets_of([example])) for example in examples]


# --- runs


@pytest.mark.parametrize("labels", ["exact", "strict", "hard", "soft", "outcome", "implicit"])
def test_every_kind_of_label_makes_a_reward_model_and_a_file(model: Path, tmp_path: Path, labels: str):
    run = train(tmp_path / "run", config(model, labels=labels))
    row = read_metrics(run.folder)[0]
    assert row["sampled_tokens"] > 0
    assert 0.0 <= row["labels_right"] <= 1.0
    assert len(read_prm800k(run.folder / "labels.jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of_labels(model: Path, tmp_path: Path):
    """A step with a 1 is right, and one with a 0 is wrong: the loss of guessing is halved."""
    solutions = [
        LabelledSolution("q", (f"1+1={bit}",), (1.0 if bit else -1.0,), answer="2") for bit in (0, 1) for _ in range(8)
    ]
    write_prm800k(tmp_path / "labels.jsonl", solutions)
    keys = {"steps": 60, "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 0}
    run = train(tmp_path / "run", config(model, data=tmp_path / "labels.jsonl", **keys))
    losses = [row["loss"] for row in read_metrics(run.folder)]
    assert fmean(losses[-5:]) < 0.35


def test_an_implicit_reward_model_learns_which_whole_solutions_are_right(model: Path, tmp_path: Path):
    keys = {
        "labels": "implicit",
        "num_prompts": 24,
        "samples_per_prompt": 4,
        "steps": 80,
        "batch_size": 32,
        "optimizer.learning_rate": 3e-3,
        "optimizer.warmup_steps": 0,
    }
    losses = [row["loss"] for row in read_metrics(train(tmp_path / "run", config(model, **keys)).folder)]
    assert losses[0] == pytest.approx(0.693, abs=0.001)  # it is its own reference: beta log 1 = 0
    assert fmean(losses[-5:]) < fmean(losses[:5]) - 0.1


def test_an_interrupted_run_resumes_to_the_same_numbers(model: Path, tmp_path: Path, interrupted: Callable[..., None]):
    c = config(model, save_every=1, labels="soft")
    whole = train(tmp_path / "whole", c)
    interrupted(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    assert metrics_text(train(tmp_path / "cut", c)) == metrics_text(whole)


# --- refusals


@pytest.mark.parametrize("keys", [{"generator": "", "data": None}, {"generator": "g", "data": Path("labels.jsonl")}])
def test_labels_come_from_a_generator_or_from_a_file(model: Path, keys: dict[str, Any]):
    with pytest.raises(SchoolError, match="set exactly one of the keys `generator`"):
        config(model, **keys)


def test_an_implicit_reward_model_needs_a_generator(model: Path):
    with pytest.raises(SchoolError, match="labels: implicit needs a `generator`"):
        config(model, labels="implicit", data=Path("labels.jsonl"))


def test_solutions_without_a_labelled_step_are_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="solutions has a labelled step"):
        train(tmp_path / "run", config(model, num_prompts=2, **{"sampling.max_new_tokens": 2}))


def test_a_task_without_rules_for_steps_is_refused_with_other_labels(model: Path, tmp_path: Path):
    keys = {"num_prompts": 2, "sampling.temperature": 0.5, "sampling.max_new_tokens": 60}
    with pytest.raises(SchoolError, match="cannot check single steps; set `labels` to soft"):
        train(tmp_path / "run", config(model, task="school:countdown", **keys))
