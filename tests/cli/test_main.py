"""The command: quick help, plain errors, a quiet stop."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schoolhouse import __version__
from schoolhouse.cli.main import COMMANDS, GROUPS, Command, main
from schoolhouse.data.tokenizer import train_tokenizer


def school(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does: in a process of its own."""
    command = [sys.executable, "-m", "schoolhouse", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)


@pytest.fixture
def command(tmp_path: Path, monkeypatch):
    """Registers one line of Python as `school train`."""

    def register(line: str) -> None:
        (tmp_path / "one_line.py").write_text(f"def run(args):\n    {line}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "one_line", raising=False)
        monkeypatch.setitem(COMMANDS, "train", Command("", "one_line:run", resumes=True))

    return register


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command_in_its_group(args: tuple[str, ...]) -> None:
    done = school(*args)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for group, commands in GROUPS.items():
        listed = lines[lines.index(f"{group}:") + 1 :][: len(commands)]
        assert [line.split(maxsplit=1) for line in listed] == [[name, c.summary] for name, c in commands.items()]
    assert max(map(len, lines)) <= 110


def test_help_takes_less_than_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        school("--help")
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = school(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: school {name}")


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_misspelt_command_is_an_error_with_a_suggestion() -> None:
    done = school("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "school: error: unknown command `trian`; did you mean `train`?\n"


def test_a_misspelt_recipe_is_an_error_with_a_suggestion() -> None:
    done = school("train", "gpro")
    assert done.returncode == 2
    assert done.stderr.startswith("school: error: unknown recipe `gpro`; did you mean `grpo`?")


def test_several_mistakes_are_one_error_of_several_lines(capsys, command) -> None:
    command("from schoolhouse.types import SchoolError; raise SchoolError('c.yaml:1: one\\nc.yaml:2: two')")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "school: error: c.yaml:1: one\n  c.yaml:2: two\n"


def test_debug_raises_the_error(command) -> None:
    command("from schoolhouse.types import SchoolError; raise SchoolError('correct this')")
    with pytest.raises(Exception, match="correct this"):
        main(["train", "--debug"])


def test_an_interrupt_names_the_command_that_resumes(capsys, command) -> None:
    command("raise KeyboardInterrupt")
    assert main(["train", "grpo", "my config.yaml"]) == 130
    assert "resumes from the last checkpoint:\n  school train grpo 'my config.yaml'" in capsys.readouterr().err


def test_an_interrupted_run_names_its_checkpoint(capsys, command) -> None:
    command("from schoolhouse.runs.run import Stopped; raise Stopped('stopped after 5 steps; saved in runs/x')")
    assert main(["train", "x"]) == 130
    assert capsys.readouterr().err.startswith(
        "\nschool: stopped after 5 steps; saved in runs/x; the same command resumes"
    )


def test_a_full_disk_is_named(capsys, command) -> None:
    command("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/x/metrics.jsonl')")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "school: error: No space left on device: runs/x/metrics.jsonl\n"


def test_a_wrong_path_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model").mkdir()
    assert main(["export", str(tmp_path / "model"), "--to", str(tmp_path / "file" / "out")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_an_interrupt_without_a_message_prints_stopped(capsys, command) -> None:
    command("raise KeyboardInterrupt")
    assert main(["train"]) == 130
    assert capsys.readouterr().err.startswith("\nschool: stopped")


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["board", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr()
    assert "give another --port" in printed.err
    assert printed.out == ""


def test_an_internal_error_keeps_its_traceback(command) -> None:
    command("raise OSError(5, 'odd')")
    with pytest.raises(OSError, match="odd"):
        main(["train"])


def test_a_closed_pipe_is_not_an_error_message() -> None:
    command = [sys.executable, "-u", "-m", "schoolhouse", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == ""


def test_tokens_shows_the_split_of_a_text(tmp_path: Path) -> None:
    for vocab_size, folder in ((290, "000002"), (300, "000010"), (280, "000011.partial")):
        checkpoint = tmp_path / "checkpoints" / folder
        checkpoint.mkdir(parents=True)
        train_tokenizer(["one apple and two apples"] * 4, vocab_size).save(checkpoint)
    done = school("tokens", "two apples 12", "--model", str(checkpoint.with_name("000010")))
    assert (done.returncode, done.stderr) == (0, "")
    assert "13 characters, 13 bytes" in done.stdout
    assert "·" in done.stdout
    assert (
        school("tokens", "two apples 12", "--model", str(tmp_path)).stdout == done.stdout
    )  # a run: its newest checkpoint


def test_a_missing_positional_argument_is_named() -> None:
    done = school("chat")
    assert done.returncode == 2
    assert done.stderr == "school: error: chat: `model` is missing: give --model\n"


def test_task_shows_problems_with_their_references() -> None:
    train, held_out = (
        school("task", "school:addition", "--show", "2"),
        school("task", "school:addition", "--show", "2", "--eval"),
    )
    assert (train.returncode, train.stderr) == (held_out.returncode, held_out.stderr) == (0, "")
    assert train.stdout.count("reference: ") == held_out.stdout.count("reference: ") == 2
    assert train.stdout != held_out.stdout


def test_task_shows_demonstrations() -> None:
    done = school("task", "school", "--demos")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("assistant: <think>") == 3


def test_task_check_counts_graded_answers() -> None:
    done = school("task", "school", "--check", "--limit", "40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 of 40 references correct" in done.stdout
    assert "40 of 40 perturbed answers rejected" in done.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        (("run", "grpo", "--scale", "tinny"), "unknown scale `tinny`; did you mean `tiny`?"),
        (("grpo",), "unknown subcommand `grpo`; did you mean `school claim run grpo`?"),
        (("report", "--results", "none"), "no results in none: run `school claim run NAME --results none` first"),
    ],
)
def test_a_wrong_claim_command_names_the_right_one(args: tuple[str, ...], message: str, capsys) -> None:
    assert main(["claim", *args]) == 2
    assert message in capsys.readouterr().err
