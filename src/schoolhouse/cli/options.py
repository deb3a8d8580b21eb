"""Functions that all commands share: they read arguments into a config, print help and show a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from schoolhouse.cli.help import print_help, wants_help
from schoolhouse.config import BaseConfig, load
from schoolhouse.runs.progress import progress
from schoolhouse.types import SchoolError

C = TypeVar("C", bound=BaseConfig)


@contextmanager
def progress_bar(title: str) -> Generator[Callable[[int, int], None]]:
    """Open a progress bar as a context manager.

    The context manager gives a function `report(done, total)`. The progress bar appears at the first call of `report`.
    """
    with ExitStack() as stack:
        advance: Callable[[int, str], None] | None = None
        before = 0

        def report(done: int, total: int) -> None:
            nonlocal advance, before
            advance = advance or stack.enter_context(progress(title, total, unit="answer"))
            advance(done - before, "")
            before = done

        yield report


def parse_options(cls: type[C], args: Sequence[str], usage: str, positional: Sequence[str]) -> C | None:
    """Read the arguments of a command into its config.

    If the arguments contain `--help`, print the help text and return None. `usage` begins with `school COMMAND`.
    """
    if wants_help(args):
        school, command, *rest = usage.split(" ", 2)
        print_help(cls, f"{school} {command}", " ".join(rest), "", args)
        return None
    return load(cls, None, args, positional)


def take_option(args: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """Return the value of one option, and the list of arguments without this option."""
    rest = list(args)
    for i, arg in enumerate(rest):
        name, equals, value = arg.partition("=")
        if name == option and equals:
            return value, rest[:i] + rest[i + 1 :]
        if name == option:
            if i + 1 == len(rest) or rest[i + 1].startswith("--"):
                raise SchoolError(f"{option} needs one value, found none")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
    return default, rest
