"""Progress on a terminal and in log files."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schoolhouse.runs import progress as module
from schoolhouse.runs import progress_display
from schoolhouse.runs.progress import Phase, duration, phase, phased, progress, set_quiet, tracked

PROGRAM = """
import sys, time
from schoolhouse.runs.progress import phase, progress
with progress("train", 4) as advance:
    for _ in range(4):
        with phase("sampling"):
            time.sleep({seconds})
        advance(1, "reward 0.5")
        print("advice", file=sys.stderr)
print("result")
"""
LOUD = {key: value for key, value in os.environ.items() if key != "SCHOOLHOUSE_QUIET"}


@pytest.fixture
def fast_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress_display, "_DRAW_SECONDS", 0.002)
    monkeypatch.setattr(progress_display, "_FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress_display, "_LINE_SECONDS", 0.0)
    set_quiet(False)
    yield
    set_quiet(False)


def on_terminal(command: list[str]) -> str:
    """Run a command whose output is a terminal, and return everything that it writes."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=LOUD | {"TERM": "xterm"}) as process:
        os.close(theirs)
        pieces = []
        while piece := _read(ours):
            pieces.append(piece)
        process.wait()
    os.close(ours)
    return b"".join(pieces).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""


def visible(output: str) -> list[str]:
    """The lines that stay on the terminal after every line was rewritten."""
    return [line.rpartition("\r\x1b[K")[2] for line in output.replace("\r\n", "\n").split("\n") if line]


def test_a_terminal_shows_one_line_that_is_rewritten_and_leaves_only_what_the_command_prints() -> None:
    output = on_terminal([sys.executable, "-c", PROGRAM.format(seconds=0.6)])
    assert "\r\x1b[Ktrain: 0/4 steps, " in output
    assert "\r\x1b[Ktrain: 1/4 steps, " in output
    assert " | sampling, " in output
    assert " | reward 0.5" in output
    assert visible(output) == ["advice"] * 4 + ["result"]


def test_a_pipe_gets_a_first_line_and_no_flood() -> None:
    command = [sys.executable, "-c", PROGRAM.format(seconds=0.8)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=LOUD)
    lines = [line for line in done.stderr.splitlines() if line != "advice"]
    assert len(lines) == 1
    assert lines[0].startswith("train: ")
    assert " | sampling, " in lines[0]
    assert "\x1b" not in done.stderr
    assert done.stdout == "result\n"


def test_without_a_terminal_there_are_plain_lines(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 10, done=4) as advance:
        advance(1, "reward 0.5")
        time.sleep(0.05)
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("train: 5/10 steps, ")
    assert printed.endswith(" | reward 0.5")


def test_phases_are_nested(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("outer", 2), progress("inner", 3, unit="answer") as inner:
        inner(1)
        time.sleep(0.05)
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("outer: 0/2 steps, ")
    assert " | inner: 1/3 answers, " in printed


def test_a_phase_without_a_display_shows_nothing(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    with phase("sampling"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_phase_of_another_thread_is_not_shown(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with phase("elsewhere"):
            time.sleep(0.05)

    with progress("here"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert "here, " in printed
    assert "elsewhere" not in printed


def test_quiet_shows_nothing(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    with progress("train", 1) as advance:
        advance(1)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_after_an_error_the_next_display_opens(fast_lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress("first", 1), phase("part"):
        raise ZeroDivisionError
    capsys.readouterr()
    with progress("second", 1):
        time.sleep(0.05)
    printed = capsys.readouterr().err
    assert "second: 0/1 steps, " in printed
    assert "part" not in printed


def test_a_decorated_function_and_tracked_items_are_phases(
    fast_lines: None, capsys: pytest.CaptureFixture[str]
) -> None:
    @phased("loading a model")
    def load(name: str) -> str:
        time.sleep(0.05)
        return name

    with progress("outer"):
        assert load("x") == "x"
        for number in tracked("learning", [4, 6], 10, "token", lambda item: item):
            time.sleep(0.02 * number)
    printed = capsys.readouterr().err
    assert " | loading a model, 0 s" in printed
    assert " | learning: 4/10 tokens, " in printed


def test_the_time_left_counts_only_finished_steps_of_this_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    running = Phase("train", 100, done=40)
    clock += 9.0
    assert running.describe() == "train: 40/100 steps, 9 s"  # the first step is not done: no rate, no time left
    running(1)
    clock += 4.0
    assert running.describe() == "train: 41/100 steps, 9 s per step, 8 min 47 s left"  # 59 x 9 s - 4 s


def test_a_total_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    running = Phase("reading", unit="row")
    clock += 5.0
    assert running.describe() == "reading, 5 s"
    running(3000)
    assert running.describe() == "reading: 3,000 rows, 600 rows/s"


@pytest.mark.parametrize(
    "seconds, text", [(45.4, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_command_shows_what_it_does_and_quiet_hides_it(tmp_path: Path) -> None:
    recipe = tmp_path / "slow.py"
    recipe.write_text(
        "import time\nfrom schoolhouse.config import BaseConfig\n"
        "class Config(BaseConfig):\n    steps: int = 1\n"
        "def slow(config, run):\n    time.sleep(3.5)\n"
    )
    command = [sys.executable, "-m", "schoolhouse", "train", str(recipe), "--dir"]
    loud = subprocess.run([*command, "a"], capture_output=True, text=True, env=LOUD, cwd=tmp_path, check=False)
    assert "school train: working, 2 s\n" in loud.stderr
    quiet = subprocess.run(
        [*command, "b", "--quiet"], capture_output=True, text=True, env=LOUD, cwd=tmp_path, check=False
    )
    assert "working" not in quiet.stderr
