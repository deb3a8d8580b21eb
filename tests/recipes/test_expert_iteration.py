"""The data engine: what is kept and counted, and that the run resumes to the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import expert_iteration
from schoolhouse.runs.atomic_io import read_jsonl
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.search.solve import SearchResult
from schoolhouse.tasks.jsonl import from_row
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Group, Key, Problem, Rollout, SchoolError, Verdict

TASK = "school:chain?steps=2"  # ten answers: a model that only knows the form is right now and then


@pytest.fixture(scope="module")
def model(taught: Callable[[str], Path]) -> Path:
    return taught(f"{TASK}&styles=no_cot=100")


def config(model: Path, **changes: Any) -> expert_iteration.Config:
    given: dict[str, Any] = {
        "task": TASK,
        "loops": 2,
        "prompts_per_loop": 12,
        "max_new_tokens": 16,
        "updates_per_loop": 2,
        "batch_size": 4,
    }
    given |= {"search": "vote?samples=4&length=16&temperature=1", "fresh_task": f"{TASK}&styles=no_cot=100"}
    return expert_iteration.Config.of(model=str(model), **{**given, **changes})


def train(folder: Path, c: expert_iteration.Config) -> Run:
    with Run.open(folder, c, "expert_iteration") as run:
        expert_iteration.expert_iteration(c, run)
    return run


def answered(number: int, reference: str, score: float | None) -> tuple[SearchResult, Group, Rollout]:
    problem = Problem(f"p{number}", (), reference)
    rollout = Rollout(problem, Key(0, "t", 0, number), (1,), (True,), (-0.1,), (0,), "stop")
    verdict = Verdict(score, "" if score is not None else "clock")
    return SearchResult(rollout, 10 * (number + 1), "answered"), Group(problem, (rollout,), (verdict,)), rollout


def test_the_account_tells_what_was_solved_and_which_answers_are_left():
    cases = [answered(0, "7", 1.0), answered(1, "7", 0.0), answered(2, "8", 1.0), answered(3, "9", None)]
    found, judged = [case[0] for case in cases], [case[1] for case in cases]
    rollouts = [case[2] for case in cases]
    kept = [rollouts[0], rollouts[2]]
    told = expert_iteration.search_stats(
        found, expert_iteration.right_keys(judged), kept, [rollout.problem for rollout in rollouts]
    )
    assert told == {"search_solved": 0.5, "search_tokens": 25.0, "coverage": 2 / 3, "rare_coverage": 0.5}


def test_only_verified_answers_are_kept_unless_told_otherwise(model: Path, tmp_path: Path):
    strict = read_metrics(train(tmp_path / "strict", config(model)).folder)[0]
    loose = read_metrics(train(tmp_path / "loose", config(model, verify=False)).folder)[0]
    assert strict["kept"] == round(strict["search_solved"] * 12)
    assert loose["kept"] > strict["kept"]


def test_each_loop_tells_plain_sampling_beside_search(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model)).folder)
    assert len(rows) == 2
    for row in rows:
        assert 0.0 <= row["reward"] <= 1.0
        assert row["search_tokens"] > 4
        assert row["fresh"] == 2 * round(4 * 0.2)


def test_trees_are_kept_to_be_looked_at(model: Path, tmp_path: Path):
    grown = config(model, search="beam?samples=2&breadth=1&length=8&values=random", loops=1, prompts_per_loop=3)
    run = train(tmp_path / "grown", grown)
    rows = read_jsonl(run.folder / "trees" / "000000.jsonl")
    assert [row["question"] for row in rows] == [
        p.messages[-1].content for p in open_task(TASK, 0).train_problems(0, 3)
    ]
    assert all({"question", "right", "tokens", "end", "tree"} <= row.keys() and row["tree"] for row in rows)
    assert not (train(tmp_path / "flat", config(model, loops=1)).folder / "trees").exists()


def test_every_loop_learns_from_all_that_was_found(model: Path, tmp_path: Path):
    c = config(model, verify=False, max_kept_per_loop=3)
    assert [row["trained_rollouts"] for row in read_metrics(train(tmp_path / "all", c).folder)] == [3, 6]
    last = config(model, verify=False, max_kept_per_loop=3, accumulate=False)
    assert [row["trained_rollouts"] for row in read_metrics(train(tmp_path / "last", last).folder)] == [3, 3]


def test_what_was_kept_is_a_task(model: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(model, verify=False, loops=1))
    path = run.folder / "lessons" / "000000.jsonl"
    asked = {problem.messages[-1].content: problem for problem in open_task(TASK, 0).train_problems(0, 12)}
    task = open_task(f"jsonl:{path}?holdout=none", 0)
    assert {problem.messages[-1].content for problem in task.train_problems(0, 12)} <= asked.keys()
    lessons = [from_row(row) for row in read_jsonl(path)]
    assert all(lesson.problem.reference == asked[lesson.problem.messages[-1].content].reference for lesson in lessons)


def test_a_loop_that_finds_nothing_leaves_the_model_as_it_is(model: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(model, search="vote?samples=1&length=1", loops=1))
    assert read_metrics(run.folder)[0]["kept"] == 0
    before, after = Policy.load(model), Policy.load(run.folder)
    pairs = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    assert all(bool((a == b).all()) for a, b in pairs)


def test_a_run_that_was_stopped_ends_in_the_same_numbers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, study = train(tmp_path / "whole", config(model)), expert_iteration.fine_tune

    def tired(*args: Any) -> Any:
        if args[-1] == 1:
            raise KeyboardInterrupt
        return study(*args)

    monkeypatch.setattr(expert_iteration, "fine_tune", tired)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config(model))
    monkeypatch.undo()
    again = train(tmp_path / "cut", config(model))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_a_search_that_is_none_is_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="unknown search `vot`; did you mean `vote`"):
        train(tmp_path / "run", config(model, search="vot"))


def test_no_more_answers_are_kept_than_asked_for(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model, verify=False, max_kept_per_loop=3)).folder)
    assert [row["kept"] for row in rows] == [3, 3]
