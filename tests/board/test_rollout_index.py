"""The index of rollouts: what is found, in which order, and that it keeps up with a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sample_runs import STEPS, line
from schoolhouse.board import rollout_index
from schoolhouse.board.rollout_index import Query, across, count, find, group, make, stale


@pytest.fixture
def run(run_folder: Callable[..., Path]) -> Path:
    folder = run_folder(steps=STEPS)
    assert make(folder) == 7
    return folder


def names(rows: list[dict]) -> list[tuple[int, str, int]]:
    return [(row["step"], row["problem"], row["sample"]) for row in rows]


@pytest.mark.parametrize(
    "query, found",
    [
        (Query(first=1), 3),
        (Query(last=0), 4),
        (Query(outcome="right"), 3),
        (Query(outcome="wrong"), 3),
        (Query(outcome="ungraded"), 1),
        (Query(problem="b"), 2),
        (Query(problem="%"), 0),
        (Query(problem="' or 1=1"), 0),
        (Query(finish_reason="length"), 1),
        (Query(least=0.5, most=1.0), 3),
        (Query(first=0, outcome="wrong", problem="a"), 1),
    ],
)
def test_filters(run: Path, query: Query, found: int):
    assert count(run, query) == found == len(find(run, query))


def test_a_piece_of_many_names_is_looked_for_in_rollouts(run: Path, monkeypatch: pytest.MonkeyPatch):
    by_name = {piece: names(find(run, Query(problem=piece))) for piece in ("a", "b", "c", "", "z")}
    monkeypatch.setattr(rollout_index, "_FEW", 0)
    assert {piece: names(find(run, Query(problem=piece))) for piece in by_name} == by_name
    assert [count(run, Query(problem=piece)) for piece in by_name] == [4, 2, 1, 7, 0]


def test_orders(run: Path):
    assert names(find(run, Query(down=False)))[0] == (0, "a", 0)
    assert [row["reward"] for row in find(run, Query(order="reward"))][:3] == [1.0] * 3
    assert [len(row["logprob"]) for row in find(run, Query(order="length", down=False))] == [2, 3, 4, 5, 6, 7, 9]
    assert names(find(run, Query(order="spread")))[:2] == [(0, "a", 1), (0, "a", 0)]  # the one group that disagrees


def test_pages_are_pieces_of_the_whole(run: Path):
    whole = names(find(run, Query()))
    assert [names(find(run, Query(), start, 2)) for start in (0, 2, 4, 6, 8)] == [
        whole[0:2], whole[2:4], whole[4:6], whole[6:7], []
    ]  # fmt: skip


def test_a_group_and_its_problem_elsewhere(run: Path):
    assert [row["reward"] for row in group(run, 0, "a")] == [0.0, 1.0]
    assert group(run, 0, "a")[0]["mean"] == 0.5
    assert [(one["step"], one["mean"], one["said"]) for one in across(run, "a")] == [(0, 0.5, 3.5), (1, 1.0, 5.0)]


def test_it_keeps_up_with_a_run(run: Path):
    assert stale(run) == []
    with (run / "rollouts" / "000001.jsonl").open("a") as file:
        file.write(json.dumps(line("c", 1, 1.0)) + "\n")
    assert [path.name for path in stale(run)] == ["000001.jsonl"]
    assert make(run) == 8
    assert len(group(run, 1, "c")) == 2


def test_files_that_went_are_forgotten(run: Path):
    (run / "rollouts" / "000001.jsonl").unlink()
    assert len(find(run, Query())) == 4  # nobody has told the index yet
    assert [path.name for path in stale(run)] == ["000001.jsonl"]
    assert make(run) == 4
    assert stale(run) == []


def test_a_file_that_is_another_one_by_now_is_no_error(run: Path):
    (run / "rollouts" / "000001.jsonl").write_text("shorter\n")
    assert len(find(run, Query())) == 4


def test_damaged_lines_are_left_out(run_folder: Callable[..., Path]):
    folder = run_folder(steps={0: STEPS[0]})
    with (folder / "rollouts" / "000000.jsonl").open("a") as file:
        file.write('{"problem": "torn"\n[1]\n' + json.dumps(line("z", 0, 1.0)) + "\n" + '{"half')
    assert make(folder) == 5
    assert group(folder, 0, "z")[0]["problem"] == "z"


def test_without_an_index_nothing_is_found(run_folder: Callable[..., Path]):
    folder = run_folder(steps=STEPS)
    assert (count(folder, Query()), find(folder, Query()), group(folder, 0, "a"), across(folder, "a")) == (
        0,
        [],
        [],
        [],
    )
    assert len(stale(folder)) == 2
