"""Rescoring recorded samples: the numbers are those of `Policy.score`, for the requested checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sample_runs import rollout_row, write_checkpoint
from schoolhouse.board.app import build_app
from schoolhouse.board.rescore import nearest_checkpoint, rescore
from schoolhouse.board.rollout_index import update_index
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Problem, Rollout, SchoolError

ROW: dict[str, Any] = {**rollout_row("a", 0, 1.0), "policy_version": 3}
TEMPERATURE = 0.5


@pytest.fixture
def run(run_folder: Callable[..., Path]) -> Path:
    """A run that has kept its checkpoints of steps 2 and 4."""
    rows = [ROW, {**rollout_row("a", 1, 0.0, num_sampled=5), "policy_version": 3}]
    folder = run_folder("one", {0: rows}, sampling={"temperature": TEMPERATURE})
    for step in (2, 4):
        write_checkpoint(folder, step)
    update_index(folder)
    return folder


def test_scores_are_those_of_the_policy_at_the_runs_temperature(run: Path):
    tokens = tuple(ROW["tokens"])
    rollout = Rollout(Problem("a", (), ""), Key(0, "t"), tokens, (False, False, True, True, True), (0.0,) * 5)
    policy = Policy.load(run / "checkpoints" / "000004", "float32")
    (expected,) = policy.score([rollout], TEMPERATURE)
    (at_temperature_1,) = policy.score([rollout], 1.0)
    (scores,) = rescore(run, 4, [ROW])
    assert scores[:2] == [None, None]
    logprobs, entropies = zip(*(score for score in scores[2:] if score), strict=True)
    assert logprobs == pytest.approx(expected.logprob[2:], abs=1e-2)
    assert entropies == pytest.approx(expected.entropy[2:], abs=1e-2)
    assert logprobs != pytest.approx(at_temperature_1.logprob[2:], abs=1e-2)


def test_another_checkpoint_gives_other_scores(run: Path):
    assert rescore(run, 2, [ROW]) != rescore(run, 4, [ROW])


def test_a_missing_checkpoint_is_an_error(run: Path):
    with pytest.raises(SchoolError, match="one has no checkpoint of step 3; choose one of the kept steps: 2, 4"):
        rescore(run, 3, [ROW])


@pytest.mark.parametrize(("policy_version", "step"), [(0, 2), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_the_nearest_checkpoint_is_the_last_one_before(policy_version: int, step: int):
    assert nearest_checkpoint([2, 4], policy_version) == step


def test_the_board_rescores_a_group(run: Path):
    with TestClient(build_app(run.parent), base_url="http://127.0.0.1") as client:
        query = {"name": "one", "step": 0, "problem": "a"}
        default = client.get("/api/rescore", params=query).json()
        latest = client.get("/api/rescore", params={**query, "checkpoint": 4}).json()
        assert (default["checkpoint"], default["checkpoints"], latest["checkpoint"]) == (2, [2, 4], 4)
        assert [len(row) for row in default["rows"]] == [5, 7]
        assert default["rows"] != latest["rows"]
        assert client.get("/api/rescore", params={**query, "checkpoint": 3}).status_code == 422
        assert client.get("/api/rescore", params={**query, "problem": "b"}).status_code == 404
