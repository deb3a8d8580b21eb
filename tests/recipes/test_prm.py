"""Reward models: what they learn from, that they learn to tell right from wrong, and the controls."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import prm
from schoolhouse.reward_models.examples import Example, read_examples, sequence_example, shuffle_labels, step_example
from schoolhouse.reward_models.step_labels import LabelledSolution, read_prm800k, write_prm800k
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, Rollout, SchoolError

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="module")
def model(taught: Callable[[str], Path]) -> Path:
    return taught(TASK)


def config(model: Path, **changes: Any) -> prm.Config:
    given: dict[str, Any] = {
        "task": TASK,
        "steps": 2,
        "batch_size": 8,
        "num_prompts": 8,
        "samples_per_prompt": 2,
        "sampling.max_new_tokens": 40,
    }
    given |= {"model": str(model), "generator": "" if "data" in changes else str(model), "continuations": 2}
    return prm.Config.of(**{**given, **changes})


def train(folder: Path, c: prm.Config) -> Run:
    with Run.open(folder, c, "prm") as run:
        prm.prm(c, run)
    return run


def worked(model: Path) -> tuple[Policy, Rollout]:
    policy = Policy.load(model)
    (example,) = open_task(TASK).demonstrations(0, 1)
    return policy, policy.conversation.demonstration_rollout(example, Key(0, "t"))


def graded(*labels: float | None) -> LabelledSolution:
    return LabelledSolution("q", tuple("ab"[: len(labels)]), labels)


# --- what is learned


def test_only_steps_with_a_label_are_learned_and_nothing_behind_them_is_read(model: Path):
    policy, rollout = worked(model)
    whole = step_example(policy.conversation, rollout, graded(1.0, -1.0), " ", "steps")
    first = step_example(policy.conversation, rollout, graded(1.0), " ", "steps")
    second = step_example(policy.conversation, rollout, graded(None, -1.0), " ", "steps")
    assert [t for t in whole.target if t == t] == [1.0, 0.0]
    assert [t for t in first.target if t == t] == [1.0]
    assert first.rollout.tokens == whole.rollout.tokens[: len(first.rollout)]
    assert sum(second.rollout.loss_mask) == 1
    assert second.target[-1] == 0.0


def test_a_file_is_read_as_a_judge_will_be_asked(model: Path, tmp_path: Path):
    """Marks behind the delimiter of each step, whatever a step holds; the one that ends a solution is its answer."""
    say = Policy.load(model).conversation
    right, wrong = ("We add two", "Then so on"), ("We add two", "It is\n\nbad")
    made = [LabelledSolution("q", right, (1.0, 0.0)), LabelledSolution("q", wrong, (1.0, -1.0), complete=False)]
    write_prm800k(tmp_path / "labels.jsonl", made)
    (_, good), (_, bad) = read_examples(tmp_path / "labels.jsonl", say, "\n")
    said = [say.tokenizer.decode(one.rollout.tokens).partition("<think>")[2] for one in (good, bad)]
    assert said == ["We add two\n+</think>Then so on<|im_end|>+", "We add two\n+It is\n\nbad\n+"]
    assert [[t for t in one.target if t == t] for one in (good, bad)] == [[1.0, 1.0], [1.0, 0.0]]
    assert all(sum(one.rollout.loss_mask) == 2 for one in (good, bad))


def test_dealt_labels_are_the_same_ones_elsewhere(model: Path):
    policy, rollout = worked(model)
    lessons = [
        step_example(policy.conversation, rollout, graded(1.0, float(-(i % 2))), " ", "steps") for i in range(40)
    ]

    def told(many: list[Example]) -> list[float]:
        return [t for one in many for t in one.target if t == t]

    shuffled = shuffle_labels(lessons, 0)
    assert sorted(told(shuffled)) == sorted(told(lessons))
    assert told(shuffled) != told(lessons)
    assert [one.rollout for one in shuffled] == [one.rollout for one in lessons]


# --- runs


@pytest.mark.parametrize("labels", ["exact", "hard", "soft", "outcome", "implicit"])
def test_every_kind_of_label_makes_a_judge_and_a_file(model: Path, tmp_path: Path, labels: str):
    run = train(tmp_path / "run", config(model, labels=labels))
    row = read_metrics(run.folder)[0]
    assert row["sampled_tokens"] > 0
    assert 0.0 <= row["labels_right"] <= 1.0
    assert len(read_prm800k(run.folder / "labels.jsonl")) > 0


def test_a_judge_learns_from_a_file_of_labels(model: Path, tmp_path: Path):
    """A step that says 1 is right and one that says 0 is wrong: the loss of guessing is halved."""
    made = [
        LabelledSolution("q", (f"1+1={bit}",), (1.0 if bit else -1.0,), answer="2") for bit in (0, 1) for _ in range(8)
    ]
    write_prm800k(tmp_path / "labels.jsonl", made)
    c = config(
        model,
        data=tmp_path / "labels.jsonl",
        steps=60,
        **{"optimizer.learning_rate": 1e-2},
        **{"optimizer.warmup_steps": 0},
    )
    losses = [row["loss"] for row in read_metrics(train(tmp_path / "run", c).folder)]
    assert fmean(losses[-5:]) < 0.35


def test_a_run_that_was_stopped_ends_in_the_same_numbers(model: Path, tmp_path: Path, stopped: Callable[..., None]):
    c = config(model, save_every=1, labels="soft")
    whole = train(tmp_path / "whole", c)
    stopped(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    again = train(tmp_path / "cut", c)
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_an_implicit_judge_learns_which_whole_solutions_are_right(model: Path, tmp_path: Path):
    c = config(
        model,
        labels="implicit",
        num_prompts=24,
        samples_per_prompt=4,
        steps=80,
        batch_size=32,
        **{"optimizer.learning_rate": 3e-3},
        **{"optimizer.warmup_steps": 0},
    )
    losses = [row["loss"] for row in read_metrics(train(tmp_path / "run", c).folder)]
    assert losses[0] == pytest.approx(0.693, abs=0.001)  # it is its own reference: beta log 1 = 0
    assert fmean(losses[-5:]) < fmean(losses[:5]) - 0.1


def test_dealt_outcomes_stay_whole(model: Path):
    _, rollout = worked(model)
    known = [0.0] * len(rollout)
    lessons = [sequence_example(rollout, graded(float(1 - 2 * (i % 2))), known) for i in range(20)]
    shuffled = shuffle_labels(lessons, 0)
    outcomes = [{t for t in one.target if t == t} for one in shuffled]
    assert all(len(found) == 1 for found in outcomes)
    assert sum(found == {1.0} for found in outcomes) == 10
    assert outcomes != [{t for t in one.target if t == t} for one in lessons]


# --- bad input


def test_labels_come_from_one_place(model: Path):
    with pytest.raises(ValueError, match="give either `generator`"):
        config(model, generator="", data=None)
    with pytest.raises(ValueError, match="give either `generator`"):
        config(model, generator=str(model), data=Path("labels.jsonl"))


def test_an_implicit_judge_needs_a_generator(model: Path):
    with pytest.raises(ValueError, match="implicit needs a `generator`"):
        config(model, labels="implicit", data=Path("labels.jsonl"))


def test_solutions_without_a_labelled_step_are_an_error(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="have no labelled step"):
        train(tmp_path / "run", config(model, **{"sampling.max_new_tokens": 2}, num_prompts=2))


def test_a_task_without_rules_says_how_to_label_it(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="cannot check single steps: label them by continuations"):
        train(
            tmp_path / "run",
            config(
                model,
                task="school:countdown",
                num_prompts=2,
                **{"sampling.temperature": 0.5},
                **{"sampling.max_new_tokens": 60},
            ),
        )
