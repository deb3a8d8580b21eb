"""The program `school` finds the command that the user typed, and runs this command.

This module imports no large package, so that `school --help` is fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import NamedTuple

from schoolhouse import __version__
from schoolhouse.runs.progress import command_progress, set_quiet
from schoolhouse.types import SchoolError


class Command(NamedTuple):
    """A command of the program `school`.

    `summary` is the line about the command in `school --help`. `target` is written as "module:function". The target
    function gets the arguments after the name of the command. `resumes` is True if a user can continue a stopped
    command by typing the same command again. `interactive` is True if the command waits for the user or for requests.
    """

    summary: str
    target: str
    resumes: bool = False
    interactive: bool = False


GROUPS: dict[str, dict[str, Command]] = {
    "train": {
        "quickstart": Command(
            "train a small model that reasons, from nothing: pretraining, SFT and RL, with a report",
            "schoolhouse.cli.train:quickstart",
            resumes=True,
        ),
        "train": Command(
            "run one recipe, such as sft or grpo, or a recipe file of your own (my_recipe.py)",
            "schoolhouse.cli.train:train",
            resumes=True,
        ),
        "run": Command(
            "run a pipeline: the stages of a YAML file, one after another",
            "schoolhouse.cli.train:run",
            resumes=True,
        ),
        "estimate": Command(
            "measure how much time and memory a training run will take, in its first steps",
            "schoolhouse.cli.train:estimate",
        ),
    },
    "evaluate": {
        "evaluate": Command(
            "measure the accuracy of a model on a task: pass@1, pass@k, maj@k, with intervals",
            "schoolhouse.cli.evaluate:evaluate",
        ),
        "solve": Command(
            "solve one problem with a search: majority vote, tree of thoughts, ...",
            "schoolhouse.cli.evaluate:solve",
        ),
    },
    "serve": {
        "chat": Command(
            "chat with a model in the terminal, or on a web page (--web)",
            "schoolhouse.cli.serve:chat",
            interactive=True,
        ),
        "serve": Command(
            "serve a model with an OpenAI-compatible API", "schoolhouse.cli.serve:serve", interactive=True
        ),
    },
    "look": {
        "runs": Command("list the runs in a folder: state, progress, result", "schoolhouse.cli.runs:runs"),
        "board": Command(
            "show runs on a local web page: curves, rollouts token by token, claims",
            "schoolhouse.cli.serve:board",
            interactive=True,
        ),
        "track": Command("copy the metrics of a run to trackio, wandb or tensorboard", "schoolhouse.cli.track:track"),
        "doctor": Command(
            "check this machine and the files of runs, or describe a model", "schoolhouse.cli.runs:doctor"
        ),
        "task": Command("show the problems of a task, or check its verifier", "schoolhouse.cli.data:task"),
        "grade": Command("grade the answers in a file against their references", "schoolhouse.cli.grade:grade"),
        "data": Command(
            "show the columns, examples, token counts and mistakes of a data file",
            "schoolhouse.cli.data_file:data",
        ),
        "tokens": Command("show how a text is split into tokens", "schoolhouse.cli.data:tokens"),
    },
    "measure": {
        "claim": Command(
            "test an effect from a paper, beside ablations that must fail, by a rule written beforehand",
            "schoolhouse.cli.claims:claim",
            resumes=True,
        ),
        "compare": Command(
            "compare recipes on your task with the same budget", "schoolhouse.cli.claims:compare", resumes=True
        ),
        "repeat": Command(
            "repeat a finished run and compare weights, metrics and rollouts bit by bit",
            "schoolhouse.cli.runs:repeat",
            resumes=True,
        ),
        "bench": Command("measure speed and memory against another library", "schoolhouse.cli.bench:bench"),
    },
    "models": {
        "pull": Command("download the model ORG/NAME from the Hugging Face Hub", "schoolhouse.cli.models:pull"),
        "import": Command(
            "make a model folder of a GGUF file, as LM Studio and Ollama use it", "schoolhouse.cli.models:import_model"
        ),
        "export": Command(
            "write a model folder with a model card, for Hugging Face or llama.cpp", "schoolhouse.cli.export:export"
        ),
    },
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
USER_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),  # a file cannot be written
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),  # a path is wrong
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    The exit status is 0 for success, and 1 if `school grade` finds a grade that is not as expected. The exit status is
    2 for an error that the user can correct, and 130 if the user stopped the command.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    set_quiet("--quiet" in args or bool(os.environ.get("SCHOOLHOUSE_QUIET")))
    args = [arg for arg in args if arg not in ("--debug", "--quiet")]
    command = COMMANDS.get(args[0]) if args else None
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(help_text())
        elif args[0] == "--version":
            print(__version__)
        elif command is None:
            raise SchoolError(f"unknown command `{args[0]}`{_suggestion(args[0])}")
        else:
            module, _, function = command.target.partition(":")
            with nullcontext() if command.interactive else command_progress(f"school {args[0]}"):
                status = getattr(import_module(module), function)(args[1:]) or 0
            sys.stdout.flush()
            return status
        sys.stdout.flush()
    except KeyboardInterrupt as stop:  # if a run was saved, `stop` has a message
        if debug:
            raise
        print(f"\nschool: {str(stop) or 'stopped'}{_resume_hint(command, args)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `school ... | head`; with devnull Python does not report the same error again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (SchoolError, OSError) as error:
        message = _user_message(error)
        if debug or message is None:
            raise
        print("school: error: " + message.replace("\n", "\n  "), file=sys.stderr)
        return 2
    return 0


def help_text() -> str:
    """Return the text that `school --help` prints."""
    lines = ["usage: school COMMAND ...", "", "Train language models to think before they answer, and measure them."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:11} {command.summary}" for name, command in commands.items())]
    lines += [
        "",
        "`school COMMAND --help` explains a command, `school train RECIPE --help` lists the keys of a recipe.",
        "`--debug` shows the traceback of an error, `--quiet` hides the progress, `--version` shows the version.",
    ]
    return "\n".join(lines)


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean `{close[0]}`?" if close else "; `school --help` lists all commands"


def _resume_hint(command: Command | None, args: Sequence[str]) -> str:
    if command is None or not command.resumes:
        return ""
    from shlex import join

    return f"; the same command resumes from the last checkpoint:\n  {join(['school', *args])}"


def _user_message(error: SchoolError | OSError) -> str | None:
    """Return the message for an error that the user can correct. Return None if a mistake in this package caused the
    error."""
    if isinstance(error, SchoolError):
        return str(error)
    if error.errno in USER_ERRNOS:
        return f"{error.strerror}: {error.filename or 'while writing'}"
    return None
