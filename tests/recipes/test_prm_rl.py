"""RL with a process reward model: the advantage of each step, what is recorded, and that a run resumes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.recipes import prm, prm_rl
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, SchoolError, Verdict
from tiny_groups import verdict
from tiny_runs import metrics_text, train

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="module")
def models(sft_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that has seen demonstrations of the task, and the run of a reward model made from it."""
    model, folder = sft_model(TASK), tmp_path_factory.mktemp("reward_model") / "run"
    keys = {"num_prompts": 8, "samples_per_prompt": 2, "sampling.max_new_tokens": 40, "steps": 3, "batch_size": 4}
    train(folder, prm.Config.of(model=str(model), generator=str(model), task=TASK, **keys))
    return model, folder


def config(models: tuple[Path, Path], **keys: Any) -> prm_rl.Config:
    defaults: dict[str, Any] = {
        "task": TASK,
        "steps": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 40,
        "save_every": 1,
    }
    return prm_rl.Config.of(model=str(models[0]), reward_model=str(models[1]), **{**defaults, **keys})


def test_a_reward_model_that_grades_no_steps_is_refused(models: tuple[Path, Path], tmp_path: Path):
    outcome = tmp_path / "outcome"
    outcome.mkdir()
    for part in models[1].iterdir():
        if part.name != "config.yaml":
            (outcome / part.name).symlink_to(part)
    text = (models[1] / "config.yaml").read_text()
    (outcome / "config.yaml").write_text(text.replace("labels: exact", "labels: outcome"))
    with pytest.raises(SchoolError, match="a reward model with labels `outcome` does not grade steps: give a reward"):
        train(tmp_path / "run", config((models[0], outcome)))


# --- advantages


def group(*rewards: float) -> Group:
    """Rollouts of a prompt of one token and a completion of three."""
    problem, mask, logprob = Problem("p", (), ""), (False, True, True, True), (NAN, -1.0, -1.0, -1.0)
    rollouts = tuple(
        Rollout(problem, Key(0, "t", 0, 0, g), (1,) * 4, mask, logprob, (1,), "stop") for g in range(len(rewards))
    )
    return Group(problem, rollouts, tuple(map(verdict, rewards)))


def advantages(form: str, alpha: float = 1.0, aggregation: str = "last", last_grade: float = 0.25) -> list[list[float]]:
    """Of a right rollout with grades .75, 1 and a wrong one with grades .5, `last_grade`; steps end at tokens 2, 3."""
    c = prm_rl.Config.of(model="m", reward_model="r", reward_form=form, alpha=alpha, step_aggregation=aggregation)
    grades = [[math.log(grade) for grade in row] for row in ([0.75, 1.0], [0.5, last_grade])]
    return prm_rl.advantages(c, [group(1.0, 0.0)], [[2, 3], [2, 3]], grades)


def approx(rows: list[list[float]]) -> list[Any]:
    return [pytest.approx(row) for row in rows]


def test_the_advantage_of_a_step_is_its_progress_on_top_of_the_outcome():
    """The value of the prompt is .5, the outcome's advantage +-.5: .5 + .25, .5 + .25, .5; -.5 + 0, -.5 - .25, -.5."""
    assert advantages("progress") == approx([[0.0, 0.75, 0.75, 0.5], [0.0, -0.5, -0.75, -0.5]])


def test_a_right_step_behind_an_error_earns_nothing_by_the_product():
    """By the product the value of the wrong rollout stays at .5, however good its next step is graded."""
    assert advantages("progress", aggregation="product", last_grade=1.0)[1] == pytest.approx([0.0, -0.5, -0.5, -0.5])
    assert advantages("progress", aggregation="last", last_grade=1.0)[1] == pytest.approx([0.0, -0.5, 0.0, -0.5])


def test_alpha_0_is_outcome_rewards_alone():
    expected = approx([[0.0, 0.5, 0.5, 0.5], [0.0, -0.5, -0.5, -0.5]])
    assert advantages("progress", alpha=0.0) == advantages("raw", alpha=0.0) == expected


def test_raw_grades_are_summed_over_the_rollout():
    """1 + 1.75 against 0 + .75: a mean of 1.75."""
    assert advantages("raw") == approx([[0.0, 1.0, 1.0, 1.0], [0.0, -1.0, -1.0, -1.0]])


# --- runs


@pytest.mark.parametrize("form", ["progress", "raw"])
def test_each_step_records_its_number_of_steps_and_their_rewards(models: tuple[Path, Path], tmp_path: Path, form: str):
    rows = read_metrics(train(tmp_path / "run", config(models, reward_form=form)).folder)
    assert len(rows) == 3
    assert all(0.0 <= row["step_reward"] <= row["num_steps"] for row in rows)
    assert all(row["num_steps"] > 0.0 for row in rows)
    assert rows[-1]["trained_tokens"] > 0


def test_an_interrupted_run_resumes_to_the_same_numbers(
    models: tuple[Path, Path], tmp_path: Path, interrupted: Callable[..., None]
):
    c = config(models)
    whole = train(tmp_path / "whole", c)
    interrupted(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    assert metrics_text(train(tmp_path / "cut", c)) == metrics_text(whole)


@pytest.mark.fault("verifier hangs")
def test_a_step_without_any_graded_rollout_updates_nothing_and_the_run_goes_on(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    grade, calls = prm_rl.grade, []

    def fail_first(*args: Any) -> list[Group]:
        calls.append(args)
        groups = grade(*args)
        if len(calls) > 1:
            return groups
        return [Group(one.problem, one.rollouts, (Verdict(None, "timeout"),) * len(one.rollouts)) for one in groups]

    monkeypatch.setattr(prm_rl, "grade", fail_first)
    rows = read_metrics(train(tmp_path / "run", config(models)).folder)
    assert ["trained_tokens" in row for row in rows] == [False, True, True]
