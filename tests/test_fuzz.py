"""A short, repeatable version of tests/fuzz.py."""

import random

import pytest

from fuzz import NAMES, Targets, attempt


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return Targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(targets: Targets, name: str) -> None:
    outcomes = [attempt(getattr(targets, name), random.Random(f"suite-{name}-{case}")) for case in range(60)]
    assert set(outcomes) <= {"read", "refused"}
    assert "read" in outcomes
    assert "refused" in outcomes or name == "completion"
