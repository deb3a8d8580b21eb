"""Practice with a judge of steps: who is praised for what, and that a run resumes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.recipes import prm, prm_rl
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, SchoolError, Verdict

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="module")
def models(taught: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that knows the form, and a judge made from it."""
    made, folder = taught(TASK), tmp_path_factory.mktemp("judge")
    few: dict[str, Any] = {
        "prompts_per_step": 8,
        "group_size": 2,
        "sampling.max_new_tokens": 40,
        "steps": 3,
        "batch_size": 4,
    }
    judge = prm.Config.of(model=str(made), generator=str(made), task=TASK, **few)
    with Run.open(folder / "judge", judge, "prm") as run:
        prm.prm(judge, run)
    return made, folder / "judge"


def config(models: tuple[Path, Path], **changes: Any) -> prm_rl.Config:
    given: dict[str, Any] = {
        "task": TASK,
        "steps": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 40,
        "save_every": 1,
    }
    return prm_rl.Config.of(model=str(models[0]), reward_model=str(models[1]), **{**given, **changes})


def train(folder: Path, c: prm_rl.Config) -> Run:
    with Run.open(folder, c, "prm_rl") as run:
        prm_rl.prm_rl(c, run)
    return run


def test_a_judge_that_grades_no_steps_is_refused(models: tuple[Path, Path], tmp_path: Path):
    told = models[1] / "config.yaml"
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.yaml").write_text(told.read_text().replace("labels: exact", "labels: outcome"))
    for part in models[1].iterdir():
        if part.name != "config.yaml":
            (tmp_path / "judge" / part.name).symlink_to(part)
    with pytest.raises(SchoolError, match="a judge with labels `outcome` grades no steps"):
        train(tmp_path / "run", config((models[0], tmp_path / "judge")))


def group(*scores: float) -> Group:
    problem = Problem("p", (), "")
    rollouts = tuple(
        Rollout(
            problem, Key(0, "t", 0, 0, g), (1,) * 4, (False, True, True, True), (NAN, -1.0, -1.0, -1.0), (1,), "stop"
        )
        for g in range(len(scores))
    )
    return Group(problem, rollouts, tuple(map(Verdict, scores)))


def rows(form: str, alpha: float = 1.0, aggregate: str = "last", second: float = 0.25) -> list[list[float]]:
    c = prm_rl.Config.of(model="m", reward_model="j", reward_form=form, alpha=alpha, aggregate=aggregate)
    grades = [[math.log(grade) for grade in few] for few in ([0.75, 1.0], [0.5, second])]
    return prm_rl.advantages(c, [group(1.0, 0.0)], [[2, 3], [2, 3]], grades)


def near(wanted: list[list[float]]) -> list[Any]:
    return [pytest.approx(row) for row in wanted]


def test_a_step_is_praised_for_its_progress_on_top_of_the_outcome():
    """The problem is worth .5, the outcome's advantage +-.5: .5 + .25, .5 + .25, .5; -.5 + 0, -.5 - .25, -.5."""
    assert rows("progress") == near([[0.0, 0.75, 0.75, 0.5], [0.0, -0.5, -0.75, -0.5]])


def test_a_step_behind_an_error_is_not_praised_for_being_right():
    """By the product the second rollout is worth .5 and stays there however good its next step looks."""
    assert rows("progress", aggregate="product", second=1.0)[1] == pytest.approx([0.0, -0.5, -0.5, -0.5])
    assert rows("progress", aggregate="last", second=1.0)[1] == pytest.approx([0.0, -0.5, 0.0, -0.5])


def test_alpha_0_is_outcome_rewards_alone():
    assert rows("progress", 0.0) == rows("raw", 0.0) == near([[0.0, 0.5, 0.5, 0.5], [0.0, -0.5, -0.5, -0.5]])


def test_raw_grades_are_summed_over_the_rollout():
    """1 + 1.75 against 0 + .75: a mean of 1.75."""
    assert rows("raw") == near([[0.0, 1.0, 1.0, 1.0], [0.0, -1.0, -1.0, -1.0]])


@pytest.mark.parametrize("form", ["progress", "raw"])
def test_each_step_tells_how_many_steps_were_said_and_how_they_were_graded(
    models: tuple[Path, Path], tmp_path: Path, form: str
):
    told = read_metrics(train(tmp_path / "run", config(models, reward_form=form)).folder)
    assert all(0.0 <= row["graded"] <= row["steps_said"] for row in told)
    assert told[-1]["trained_tokens"] > 0


def test_a_run_that_was_stopped_ends_in_the_same_numbers(
    models: tuple[Path, Path], tmp_path: Path, stopped: Callable[..., None]
):
    c = config(models)
    whole = train(tmp_path / "whole", c)
    stopped(lambda: train(tmp_path / "cut", c))
    assert len(read_metrics(tmp_path / "cut")) == 1
    again = train(tmp_path / "cut", config(models))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()
