"""Expert iteration: what is kept and counted, and that a run resumes to the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import expert_iteration
from schoolhouse.runs.atomic_io import read_jsonl
from schoolhouse.runs.run import read_metrics
from schoolhouse.search.solve import SearchResult
from schoolhouse.tasks.jsonl import demonstration_from_row
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Group, Key, Problem, Rollout, SchoolError
from tiny_groups import verdict
from tiny_runs import metrics_text, train

TASK = "school:chain?steps=2"  # ten answers: a model that knows the format is right now and then


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(f"{TASK}&styles=no_cot=100")


def config(model: Path, **keys: Any) -> expert_iteration.Config:
    defaults: dict[str, Any] = {
        "task": TASK,
        "fresh_task": f"{TASK}&styles=no_cot=100",
        "loops": 2,
        "prompts_per_loop": 12,
        "search": "vote?samples=4&max_new_tokens=16&temperature=1",
        "max_new_tokens": 16,
        "updates_per_loop": 2,
        "batch_size": 4,
    }
    return expert_iteration.Config.of(model=str(model), **{**defaults, **keys})


def search_result(number: int, reference: str, reward: float | None) -> tuple[SearchResult, Group, Rollout]:
    """A search for one problem, its graded group of one, and its rollout."""
    problem = Problem(f"p{number}", (), reference)
    rollout = Rollout(problem, Key(0, "t", 0, number), (1,), (True,), (-0.1,), (0,), "stop")
    result = SearchResult(rollout, 10 * (number + 1), "answered")
    return result, Group(problem, (rollout,), (verdict(reward),)), rollout


# --- what is counted


def test_coverage_is_of_distinct_right_answers_and_rare_coverage_of_those_of_one_problem():
    cases = [
        search_result(0, "7", 1.0),
        search_result(1, "7", 0.0),
        search_result(2, "8", 1.0),
        search_result(3, "9", None),
    ]
    results, groups = [case[0] for case in cases], [case[1] for case in cases]
    rollouts = [case[2] for case in cases]
    right, problems = expert_iteration.right_keys(groups), [rollout.problem for rollout in rollouts]
    stats = expert_iteration.search_stats(results, right, [rollouts[0], rollouts[2]], problems)
    assert stats == {"search_solved": 0.5, "search_tokens": 25.0, "coverage": 2 / 3, "rare_coverage": 0.5}


def test_each_loop_records_plain_sampling_beside_search(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model)).folder)
    assert len(rows) == 2
    for row in rows:
        assert 0.0 <= row["reward"] <= 1.0
        assert row["search_tokens"] > 4
        assert row["fresh"] == 2 * round(4 * 0.2)


def test_trees_of_searches_are_recorded(model: Path, tmp_path: Path):
    beam = "beam?samples=2&beam_width=1&max_new_tokens=8&values=random"
    run = train(tmp_path / "beam", config(model, search=beam, loops=1, prompts_per_loop=3))
    rows = read_jsonl(run.folder / "trees" / "000000.jsonl")
    problems = open_task(TASK, 0).train_problems(0, 3)
    assert [row["question"] for row in rows] == [problem.messages[-1].content for problem in problems]
    assert all({"question", "correct", "tokens", "stop_reason", "tree"} <= row.keys() and row["tree"] for row in rows)
    assert not (train(tmp_path / "vote", config(model, loops=1)).folder / "trees").exists()


# --- what is kept and learned


def test_only_right_answers_are_kept_unless_verify_is_false(model: Path, tmp_path: Path):
    verified = read_metrics(train(tmp_path / "verified", config(model)).folder)[0]
    everything = read_metrics(train(tmp_path / "everything", config(model, verify=False)).folder)[0]
    assert verified["kept"] == round(verified["search_solved"] * 12)
    assert everything["kept"] > verified["kept"]


def test_no_more_than_the_cap_is_kept_of_a_loop(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model, verify=False, max_kept_per_loop=3)).folder)
    assert [row["kept"] for row in rows] == [3, 3]


def test_every_loop_learns_from_all_loops_so_far_or_from_its_own(model: Path, tmp_path: Path):
    keys = {"verify": False, "max_kept_per_loop": 3}
    accumulated = read_metrics(train(tmp_path / "all", config(model, **keys)).folder)
    last = read_metrics(train(tmp_path / "last", config(model, **keys, accumulate=False)).folder)
    assert [row["trained_rollouts"] for row in accumulated] == [3, 6]
    assert [row["trained_rollouts"] for row in last] == [3, 3]


def test_the_kept_answers_are_a_task(model: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(model, verify=False, loops=1))
    path = run.folder / "kept" / "000000.jsonl"
    problems = {problem.messages[-1].content: problem for problem in open_task(TASK, 0).train_problems(0, 12)}
    task = open_task(f"jsonl:{path}?holdout=none", 0)
    assert {problem.messages[-1].content for problem in task.train_problems(0, 12)} <= problems.keys()
    kept = [demonstration_from_row(row).problem for row in read_jsonl(path)]
    assert kept
    assert all(problem.reference == problems[problem.messages[-1].content].reference for problem in kept)


def test_a_loop_that_keeps_nothing_leaves_the_model_as_it_is(model: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(model, search="vote?samples=1&max_new_tokens=1", loops=1))
    assert read_metrics(run.folder)[0]["kept"] == 0
    before, after = Policy.load(model), Policy.load(run.folder)
    pairs = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    assert all(bool((a == b).all()) for a, b in pairs)


def test_an_interrupted_run_resumes_to_the_same_numbers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, fine_tune = train(tmp_path / "whole", config(model)), expert_iteration.fine_tune

    def interrupt_in_loop_1(*args: Any) -> Any:
        if args[-1] == 1:
            raise KeyboardInterrupt
        return fine_tune(*args)

    with monkeypatch.context() as patch:
        patch.setattr(expert_iteration, "fine_tune", interrupt_in_loop_1)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config(model))
    assert len(read_metrics(tmp_path / "cut")) == 1
    assert metrics_text(train(tmp_path / "cut", config(model))) == metrics_text(whole)


def test_an_unknown_search_is_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="unknown search `vot`; did you mean `vote`"):
        train(tmp_path / "run", config(model, search="vot"))
