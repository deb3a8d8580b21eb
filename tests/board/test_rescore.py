"""What a checkpoint thinks of samples: the numbers of the learner's own scores, for the checkpoint that was asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sample_runs import keep_model, line
from schoolhouse.board.app import build_app
from schoolhouse.board.rescore import nearest, weigh
from schoolhouse.board.rollout_index import make
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Problem, Rollout, SchoolError

ROW: dict[str, Any] = {**line("a", 0, 1.0), "policy_version": 3}


@pytest.fixture
def run(run_folder: Callable[..., Path]) -> Path:
    """A run that kept its models of steps 2 and 4."""
    made = run_folder("one", {0: [ROW, {**line("a", 1, 0.0, said=5), "policy_version": 3}]}, temperature=0.5)
    for step in (2, 4):
        keep_model(made, step)
    make(made)
    return made


def test_the_numbers_are_the_learners_own(run: Path):
    tokens = tuple(ROW["tokens"])
    rollout = Rollout(Problem("a", (), ""), Key(0, "t"), tokens, (False, False, True, True, True), (0.0,) * 5)
    (scores,) = Policy.load(run / "checkpoints" / "000004", "float32").score([rollout], 0.5)
    (weighed,) = weigh(run, 4, [ROW])
    assert weighed[:2] == [None, None]
    assert [pair[0] for pair in weighed[2:] if pair] == pytest.approx(scores.logprob[2:], abs=1e-2)
    assert [pair[1] for pair in weighed[2:] if pair] == pytest.approx(scores.entropy[2:], abs=1e-2)


def test_another_checkpoint_thinks_otherwise(run: Path):
    assert weigh(run, 2, [ROW]) != weigh(run, 4, [ROW])


def test_a_checkpoint_that_was_not_kept_is_an_error(run: Path):
    with pytest.raises(SchoolError, match="one has kept no checkpoint 3"):
        weigh(run, 3, [ROW])


@pytest.mark.parametrize(("version", "step"), [(0, 2), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_the_checkpoint_that_sampled_or_the_last_before(version: int, step: int):
    assert nearest([2, 4], version) == step


def test_the_board_weighs_a_group(run: Path):
    with TestClient(build_app(run.parent), base_url="http://127.0.0.1") as client:
        asked = {"name": "one", "step": 0, "problem": "a"}
        first = client.get("/api/weights", params=asked).json()
        later = client.get("/api/weights", params={**asked, "checkpoint": 4}).json()
        assert (first["checkpoint"], first["checkpoints"], later["checkpoint"]) == (2, [2, 4], 4)
        assert [len(row) for row in first["rows"]] == [5, 7]
        assert first["rows"] != later["rows"]
        assert client.get("/api/weights", params={**asked, "checkpoint": 3}).status_code == 422
        assert client.get("/api/weights", params={**asked, "problem": "b"}).status_code == 404
