"""The command: quick to answer, plain about what is wrong, quiet when it is stopped."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse import __version__
from schoolhouse.cli.main import COMMANDS, Command, main
from schoolhouse.data.tokenizer import train_tokenizer


def school(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does: in a process of its own."""
    command = [sys.executable, "-m", "schoolhouse", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)


@pytest.fixture
def command(tmp_path: Path, monkeypatch):
    """Registers a command of one line of Python as `school train`."""

    def register(line: str) -> None:
        (tmp_path / "made_here.py").write_text(f"def do(words):\n    {line}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "made_here", raising=False)
        monkeypatch.setitem(COMMANDS, "train", Command("train", "", "made_here:do", resumes=True))

    return register


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command(words: tuple[str, ...]) -> None:
    done = school(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for one in COMMANDS.values():
        assert one.usage in done.stdout
        assert one.summary in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = school(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"school {name}" in done.stdout


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_misspelt_command_is_an_error_with_a_suggestion() -> None:
    done = school("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "school: error: there is no command `trian`; did you mean `train`?\n"


def test_a_misspelt_recipe_is_an_error_with_a_suggestion() -> None:
    done = school("train", "gpro")
    assert done.returncode == 2
    assert done.stderr == "school: error: there is no recipe `gpro`; did you mean `grpo`?\n"


def test_several_mistakes_are_one_error_of_several_lines(capsys, command) -> None:
    command("from schoolhouse.types import SchoolError; raise SchoolError('c.yaml:1: one\\nc.yaml:2: two')")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "school: error: c.yaml:1: one\n  c.yaml:2: two\n"


def test_debug_shows_where_an_error_came_from(command) -> None:
    command("from schoolhouse.types import SchoolError; raise SchoolError('mend this')")
    with pytest.raises(Exception, match="mend this"):
        main(["train", "--debug"])


def test_an_interrupt_says_how_to_go_on(capsys, command) -> None:
    command("raise KeyboardInterrupt")
    assert main(["train", "grpo", "my config.yaml"]) == 130
    assert "goes on from the last checkpoint:\n  school train grpo 'my config.yaml'" in capsys.readouterr().err


def test_an_interrupted_run_says_what_was_saved(capsys, command) -> None:
    command("from schoolhouse.runs.run import Stopped; raise Stopped('stopped after 5 steps; saved in runs/x')")
    assert main(["train", "x"]) == 130
    assert capsys.readouterr().err.startswith("\nschool: stopped after 5 steps; saved in runs/x; the same command goes")


def test_a_full_disk_is_named(capsys, command) -> None:
    command("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/x/metrics.jsonl')")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "school: error: No space left on device: runs/x/metrics.jsonl\n"


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model").mkdir()
    assert main(["export", str(tmp_path / "model"), "--to", str(tmp_path / "file" / "out")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_an_interrupt_without_words_says_stopped(capsys, command) -> None:
    command("raise KeyboardInterrupt")
    assert main(["train"]) == 130
    assert capsys.readouterr().err.startswith("\nschool: stopped")


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["board", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    told = capsys.readouterr()
    assert "choose another --port" in told.err
    assert "shown at" not in told.out


def test_a_fault_of_ours_is_not_passed_off_as_the_users(command) -> None:
    command("raise OSError(5, 'odd')")
    with pytest.raises(OSError, match="odd"):
        main(["train"])


def test_a_reader_that_stops_listening_is_no_error() -> None:
    command = [sys.executable, "-u", "-m", "schoolhouse", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == ""


def test_tokens_shows_how_a_text_is_cut(tmp_path: Path) -> None:
    for vocabulary, folder in ((290, "000002"), (300, "000010"), (280, "000011.partial")):
        checkpoint = tmp_path / "checkpoints" / folder
        checkpoint.mkdir(parents=True)
        train_tokenizer(["one apple and two apples"] * 4, vocabulary).save(checkpoint)
    done = school("tokens", "two apples 12", "--model", str(checkpoint.with_name("000010")))
    assert (done.returncode, done.stderr) == (0, "")
    assert "13 characters, 13 bytes" in done.stdout
    assert "·" in done.stdout
    assert school("tokens", "two apples 12", "--model", str(tmp_path)).stdout == done.stdout  # a run: its newest


def test_a_missing_positional_is_asked_for() -> None:
    done = school("chat")
    assert done.returncode == 2
    assert done.stderr == "school: error: chat: `model` is missing: give --model\n"


def test_task_shows_problems_with_their_references() -> None:
    practice, exam = (
        school("task", "school:addition", "--show", "2"),
        school("task", "school:addition", "--show", "2", "--exam"),
    )
    assert (practice.returncode, practice.stderr) == (exam.returncode, exam.stderr) == (0, "")
    assert practice.stdout.count("reference: ") == exam.stdout.count("reference: ") == 2
    assert practice.stdout != exam.stdout


def test_task_shows_worked_examples() -> None:
    done = school("task", "school", "--worked")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("assistant: <think>") == 3


def test_task_check_counts_what_was_judged() -> None:
    done = school("task", "school", "--check", "--limit", "40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 of 40 references right" in done.stdout
    assert "40 of 40 perturbed answers wrong" in done.stdout
