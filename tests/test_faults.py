"""docs/reliability.md shows the fault matrix as it is."""

from pathlib import Path

import pytest

from faults import FAULTS, markdown

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"


@pytest.mark.parametrize("row", FAULTS)
def test_the_page_holds_every_row(row: str) -> None:
    fault, then = FAULTS[row]
    assert f"| {fault} | {then} |" in PAGE.read_text()


def test_a_row_without_a_test_is_seen() -> None:
    first, second, *_ = FAULTS
    lines = markdown({first: (2, 2), second: (1, 2)}).splitlines()
    assert lines[2].endswith("| 2 of 2 |")
    assert lines[3].endswith("| 1 of 2 |")
    assert all(line.endswith("| NONE |") for line in lines[4:])
