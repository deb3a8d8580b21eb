"""An audit set: answers that try to be right without being it, and the verdict that each must get.

`score` null stands for "not right": wrong, or not judged because reading it would take for ever.
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
    with WorkerPool(open_jsonl(str(path)), workers=1, clock=3.0) as pool:
        yield pool


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["about"].replace(" ", "-"))
@pytest.mark.fault("verifier lies")
def test_the_verdict_is_the_expected_one(pool: WorkerPool, row: dict) -> None:
    case = (Problem("audit", (), row["reference"]), Completion(row.get("thought"), row["answer"]))
    (verdict,) = pool.grade_all([case])
    assert verdict.reward == row["score"] if row["score"] is not None else verdict.reward in (0.0, None), verdict.reason
