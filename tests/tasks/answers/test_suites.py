"""The pairs of the suites of Math-Verify, Hendrycks MATH and Qwen2.5-Math: ours agrees but for stated policies."""

import json
import multiprocessing
from pathlib import Path

import pytest

from schoolhouse.tasks.answers.options import Grading
from schoolhouse.tasks.grade_reply import Pair, grade_pairs

ROWS = [json.loads(line) for line in Path(__file__).with_name("suites.jsonl").read_text().splitlines()]
PAGE = (Path(__file__).parents[3] / "docs" / "grading.md").read_text()


@pytest.fixture(scope="module")
def rewards() -> list[float | None]:
    assert multiprocessing.parent_process() is None
    pairs = [Pair("", row["reference"], row["candidate"], "", None) for row in ROWS]
    return [verdict.reward for verdict in grade_pairs(pairs, Grading(extraction="auto"))]


def test_ours_agrees_with_the_suites_but_for_the_stated_policies(rewards: list[float | None]) -> None:
    differing = [row for row, reward in zip(ROWS, rewards, strict=True) if reward != row["theirs"]]
    assert [row for row in differing if not row["policy"]] == []
    assert [row for row in ROWS if row["policy"] and row not in differing] == []


def test_the_page_states_every_policy() -> None:
    policies = {row["policy"] for row in ROWS} - {""}
    assert [policy for policy in policies if policy not in PAGE] == []
