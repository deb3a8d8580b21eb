"""`school grade`: disagreements are printed, and the exit status is 1 where there are any."""

import json
from pathlib import Path

import pytest

from schoolhouse.cli.main import main


def write(path: Path, *rows: tuple[str, str, int | None]) -> str:
    lines = [
        json.dumps(
            {"reference": reference, "candidate": candidate} | ({"expected": expected} if expected is not None else {})
        )
        for reference, candidate, expected in rows
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_agreement_is_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "pairs.jsonl", ("1/2", "0.5", 1), ("4t", "4", 0), ("x+1", "1+x", None))
    assert main(["grade", path]) == 0
    assert capsys.readouterr().out == "3 pairs: 2 right; 2 of 2 as expected\n"


def test_disagreement_is_status_1_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "pairs.jsonl", ("10", "10 cm", 1), ("5", "5", 1))
    assert main(["grade", path]) == 1
    shown = capsys.readouterr().out
    assert (
        "pairs.jsonl:1: reward 0 (a unit that was not asked for), expected 1: candidate '10 cm', reference '10'"
        in shown
    )
    assert "2 pairs: 1 right; 1 of 2 as expected" in shown
    assert main(["grade", path, "--units", "lenient"]) == 0


def test_all_shows_every_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "pairs.jsonl", ("5", "5", 1), ("5", "6", None))
    assert main(["grade", path, "--all"]) == 0
    assert "pairs.jsonl:2: reward 0 (another number): candidate '6'" in capsys.readouterr().out


def test_a_missing_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read" in capsys.readouterr().err
