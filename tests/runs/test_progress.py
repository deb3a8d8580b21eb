"""Progress on a terminal and in log files."""

import pytest

from schoolhouse.runs import progress as module
from schoolhouse.runs.progress import duration, progress


def test_without_a_terminal_there_is_a_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with progress("train", 10, done=4) as advance:
        advance(1, "reward 0.5")
    printed = capsys.readouterr().err
    assert printed.startswith("train: 5/10, ")
    assert "left" in printed
    assert printed.endswith("reward 0.5\n")


def test_a_total_may_be_unknown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with progress("reading", None, unit="row") as advance:
        advance(3, "")
    assert "reading: 3, " in (printed := capsys.readouterr().err)
    assert "left" not in printed


def test_lines_are_at_least_seconds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 1000) as advance:
        for _ in range(1000):
            advance(1, "")
    assert capsys.readouterr().err == ""


def test_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with progress("outer", 1) as outer:
        with progress("inner", 1) as inner:
            inner(1, "")
        outer(1, "")
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["outer"]


def test_after_an_error_the_next_one_shows_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with pytest.raises(ZeroDivisionError), progress("first", 1):
        raise ZeroDivisionError
    with progress("second", 1) as advance:
        advance(1, "")
    assert "second: 1/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seconds, text", [(45.4, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
