"""The index of rollouts: filters, orders, pages, and updates while a run grows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sample_runs import ROLLOUTS, rollout_row
from schoolhouse.board import rollout_index
from schoolhouse.board.rollout_index import (
    RolloutQuery,
    count,
    find,
    group,
    problem_history,
    stale_files,
    update_index,
)


@pytest.fixture
def run(run_folder: Callable[..., Path]) -> Path:
    folder = run_folder(rollouts=ROLLOUTS)
    assert update_index(folder) == 7
    return folder


def names(rows: list[dict]) -> list[tuple[int, str, int]]:
    return [(row["step"], row["problem"], row["sample"]) for row in rows]


@pytest.mark.parametrize(
    "query, matches",
    [
        (RolloutQuery(min_step=1), 3),
        (RolloutQuery(max_step=0), 4),
        (RolloutQuery(correctness="correct"), 3),
        (RolloutQuery(correctness="incorrect"), 3),
        (RolloutQuery(correctness="ungraded"), 1),
        (RolloutQuery(problem="b"), 2),
        (RolloutQuery(problem="%"), 0),
        (RolloutQuery(problem="' or 1=1"), 0),
        (RolloutQuery(finish_reason="length"), 1),
        (RolloutQuery(min_reward=0.5, max_reward=1.0), 3),
        (RolloutQuery(min_step=0, correctness="incorrect", problem="a"), 1),
    ],
)
def test_filters(run: Path, query: RolloutQuery, matches: int):
    assert count(run, query) == matches == len(find(run, query))


def test_a_part_of_very_many_problem_ids_is_searched_in_the_rollouts(run: Path, monkeypatch: pytest.MonkeyPatch):
    by_list = {part: names(find(run, RolloutQuery(problem=part))) for part in ("a", "b", "c", "", "z")}
    monkeypatch.setattr(rollout_index, "_MAX_LISTED_PROBLEMS", 0)
    assert {part: names(find(run, RolloutQuery(problem=part))) for part in by_list} == by_list
    assert [count(run, RolloutQuery(problem=part)) for part in by_list] == [4, 2, 1, 7, 0]


def test_orders(run: Path):
    assert names(find(run, RolloutQuery(descending=False)))[0] == (0, "a", 0)
    assert [row["reward"] for row in find(run, RolloutQuery(sort_by="reward"))][:3] == [1.0] * 3
    by_length = find(run, RolloutQuery(sort_by="completion_tokens", descending=False))
    assert [len(row["logprob"]) for row in by_length] == [2, 3, 4, 5, 6, 7, 9]
    by_variance = names(find(run, RolloutQuery(sort_by="group_variance")))
    assert by_variance[:2] == [(0, "a", 1), (0, "a", 0)]  # the one group with different rewards


def test_pages_are_slices_of_the_whole(run: Path):
    whole = names(find(run, RolloutQuery()))
    assert [names(find(run, RolloutQuery(), offset, 2)) for offset in (0, 2, 4, 6, 8)] == [
        whole[0:2], whole[2:4], whole[4:6], whole[6:7], []
    ]  # fmt: skip


def test_a_group_and_the_history_of_its_problem(run: Path):
    assert [row["reward"] for row in group(run, 0, "a")] == [0.0, 1.0]
    assert group(run, 0, "a")[0]["group_mean"] == 0.5
    assert problem_history(run, "a") == [
        {"step": 0, "samples": 2, "mean_reward": 0.5, "mean_completion_tokens": 3.5},
        {"step": 1, "samples": 2, "mean_reward": 1.0, "mean_completion_tokens": 5.0},
    ]


def test_new_lines_are_indexed(run: Path):
    assert stale_files(run) == []
    with (run / "rollouts" / "000001.jsonl").open("a") as file:
        file.write(json.dumps(rollout_row("c", 1, 1.0)) + "\n")
    assert [path.name for path in stale_files(run)] == ["000001.jsonl"]
    assert update_index(run) == 8
    assert len(group(run, 1, "c")) == 2


def test_deleted_files_are_removed_from_the_index(run: Path):
    (run / "rollouts" / "000001.jsonl").unlink()
    assert len(find(run, RolloutQuery())) == 4  # before the index is updated
    assert [path.name for path in stale_files(run)] == ["000001.jsonl"]
    assert update_index(run) == 4
    assert stale_files(run) == []


def test_a_file_that_was_replaced_since_is_skipped(run: Path):
    (run / "rollouts" / "000001.jsonl").write_text("shorter\n")
    assert len(find(run, RolloutQuery())) == 4


def test_damaged_lines_are_skipped(run_folder: Callable[..., Path]):
    folder = run_folder(rollouts={0: ROLLOUTS[0]})
    with (folder / "rollouts" / "000000.jsonl").open("a") as file:
        file.write('{"problem": "torn"\n[1]\n' + json.dumps(rollout_row("z", 0, 1.0)) + "\n" + '{"half')
    assert update_index(folder) == 5
    assert group(folder, 0, "z")[0]["problem"] == "z"


def test_without_an_index_nothing_is_found(run_folder: Callable[..., Path]):
    folder = run_folder(rollouts=ROLLOUTS)
    assert count(folder, RolloutQuery()) == 0
    assert find(folder, RolloutQuery()) == []
    assert group(folder, 0, "a") == []
    assert problem_history(folder, "a") == []
    assert len(stale_files(folder)) == 2
