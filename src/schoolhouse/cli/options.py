"""Functions that all commands share: reading arguments into a frozen config, help, a progress bar."""

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
    """A progress bar whose callback takes (done, total). The bar appears with the first call."""
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
    """The arguments of a command as its config. If the arguments ask for help, print the help and return None.

    usage  `school COMMAND ...`
    """
    if wants_help(args):
        school, command, *rest = usage.split(" ", 2)
        print_help(cls, f"{school} {command}", " ".join(rest), "", args)
        return None
    return load(cls, None, args, positional)


def take_option(args: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of one option, and the arguments without this option."""
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
