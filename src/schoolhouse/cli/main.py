"""`school`: finds the command and runs it. Imports nothing heavy, so that `school --help` answers at once."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from schoolhouse import __version__
from schoolhouse.types import SchoolError


class Command(NamedTuple):
    """A line of `school --help`, and where the command is: "module:function", called with the words after its name."""

    usage: str
    summary: str
    target: str
    resumes: bool = False
    """Whether the same command again goes on where it was stopped."""


COMMANDS = {
    "quickstart": Command(
        "quickstart [--seed N] [--dir FOLDER]",
        "from nothing to a model that thinks: all stages on this machine, with a report and a figure",
        "schoolhouse.cli.train:quickstart",
        resumes=True,
    ),
    "run": Command(
        "run PIPELINE.yaml [--seed N] [--dir FOLDER]",
        "the stages of a file of your own, as quickstart does",
        "schoolhouse.cli.train:run",
        resumes=True,
    ),
    "train": Command(
        "train RECIPE [CONFIG.yaml] [--key value ...] [--dir FOLDER]",
        "one recipe (`school train --help` lists them)",
        "schoolhouse.cli.train:train",
        resumes=True,
    ),
    "estimate": Command(
        "estimate RECIPE [CONFIG.yaml] [--key value ...]",
        "how much time and memory that run will take, from its first steps",
        "schoolhouse.cli.train:estimate",
    ),
    "claim": Command(
        "claim list | run NAME [--seeds 3] [--arms a,b] | report",
        "a published effect beside the ablations that must fail, with a verdict by a rule written beforehand",
        "schoolhouse.cli.claims:claim",
        resumes=True,
    ),
    "compare": Command(
        "compare --recipes grpo,rloo,star --model M --task T --budget 20m",
        "recipes side by side on your task, with the same budget: a table with intervals and a figure",
        "schoolhouse.cli.claims:compare",
        resumes=True,
    ),
    "bench": Command(
        "bench KIND --against PEER [--json FILE]",
        "speed and memory beside a peer, in turns on the same work: sampler, learner, grpo, pretrain, server",
        "schoolhouse.cli.bench:bench",
    ),
    "runs": Command("runs [FOLDER]", "the runs in a folder: state, progress, result", "schoolhouse.cli.runs:runs"),
    "track": Command(
        "track RUN --to trackio|wandb|tensorboard [--follow]",
        "a run's numbers in the tracker that you already look at",
        "schoolhouse.cli.track:track",
    ),
    "repeat": Command(
        "repeat RUN [--dir FOLDER]",
        "a finished run once more, and whether it came out in the same bits",
        "schoolhouse.cli.runs:repeat",
        resumes=True,
    ),
    "doctor": Command(
        "doctor [FOLDER]",
        "what this machine offers and lacks; whether run folders are whole",
        "schoolhouse.cli.runs:doctor",
    ),
    "evaluate": Command(
        "evaluate MODEL --task TASK",
        "an exam: pass@1, pass@k, maj@k, thought length, each with its 95 % interval",
        "schoolhouse.cli.evaluate:evaluate",
    ),
    "solve": Command(
        'solve MODEL "problem" [--search tot] [--budget N] [--show] [--page FILE.html]',
        "one problem, with as much thinking as asked for: votes, or a tree of thoughts to look at",
        "schoolhouse.cli.evaluate:solve",
    ),
    "chat": Command(
        "chat MODEL [--web]", "talk to a model, here or on a page; its thinking is dimmed", "schoolhouse.cli.serve:chat"
    ),
    "board": Command(
        "board [FOLDER] [--port 8100]",
        "runs as a local web page: curves, rollouts token by token, claims; live",
        "schoolhouse.cli.serve:board",
    ),
    "serve": Command(
        "serve MODEL [--port 8000] [--key KEY]",
        "a model behind OpenAI's API: streaming, thinking apart, log-probabilities, search",
        "schoolhouse.cli.serve:serve",
    ),
    "export": Command(
        "export MODEL --to DIR [--format hf|gguf|int8]",
        "a folder that others can use, with a card that says where the model comes from",
        "schoolhouse.cli.export:export",
    ),
    "task": Command(
        "task NAME [--show N] [--check]",
        "look at a task's problems, or judge all its reference answers",
        "schoolhouse.cli.data:task",
    ),
    "tokens": Command(
        "tokens TEXT --model MODEL", "how a text is cut into tokens, in colour", "schoolhouse.cli.data:tokens"
    ),
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do
USER_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),  # what may not be written
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),  # paths that lead nowhere
)
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = COMMANDS.get(words[0]) if words else None
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(help_text())
        elif words[0] == "--version":
            print(__version__)
        elif command is None:
            raise SchoolError(f"there is no command `{words[0]}`{_suggestion(words[0])}")
        else:
            module, _, function = command.target.partition(":")
            getattr(import_module(module), function)(words[1:])
        sys.stdout.flush()
    except KeyboardInterrupt as stop:  # a run that could save itself says so
        if debug:
            raise
        print(f"\nschool: {str(stop) or 'stopped'}{_how_to_go_on(command, words)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `school ... | head`: nobody listens any more; keep the exit itself from complaining
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (SchoolError, OSError) as error:
        message = _mendable(error)
        if debug or message is None:
            raise
        print("school: error: " + message.replace("\n", "\n  "), file=sys.stderr)
        return 2
    return 0


def help_text() -> str:
    """What `school --help` says."""
    lines = [
        "A one-room school for language models: textbooks, worked examples, practice, exams.",
        "",
        "usage: school COMMAND ...",
        "",
    ]
    for command in COMMANDS.values():
        lines += [f"  {command.usage}", f"      {command.summary}"]
    return "\n".join(
        [
            *lines,
            "",
            "`school COMMAND --help` explains one. --debug shows where an error came from, --version the version.",
        ]
    )


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean `{close[0]}`?" if close else "; `school --help` lists them"


def _how_to_go_on(command: Command | None, words: Sequence[str]) -> str:
    if command is None or not command.resumes:
        return ""
    from shlex import join

    return f"; the same command goes on from the last checkpoint:\n  {join(['school', *words])}"


def _mendable(error: SchoolError | OSError) -> str | None:
    """What to tell the user of an error; None where it is no fault of theirs."""
    if isinstance(error, SchoolError):
        return str(error)
    if error.errno in USER_ERRNOS:
        return f"{error.strerror}: {error.filename or 'while writing'}"
    return None
