"""Adversarial answers, and the reward that each must get.

`reward` null stands for "not correct": 0, or no reward because the comparison would take for ever.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from schoolhouse.tasks.jsonl import open_jsonl
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Problem

ROWS = [json.loads(line) for line in Path(__file__).with_name("adversarial.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    path.write_text(json.dumps({"prompt": "?", "reference": r"\sqrt{2}"}) + "\n")
    with WorkerPool(open_jsonl(str(path)), num_workers=1, timeout=3.0) as pool:
        yield pool


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["about"].replace(" ", "-"))
@pytest.mark.fault("verifier lies")
def test_the_reward_is_the_expected_one(pool: WorkerPool, row: dict) -> None:
    case = (Problem("audit", (), row["reference"]), Completion(row.get("thought"), row["answer"]))
    (verdict,) = pool.grade_all([case])
    expected = {row["reward"]} if row["reward"] is not None else {0.0, None}
    assert verdict.reward in expected, verdict.reason
