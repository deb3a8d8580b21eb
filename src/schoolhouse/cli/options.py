"""What all commands share: their words as a frozen config, help, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from schoolhouse.config import BaseConfig, load, print_help
from schoolhouse.runs.progress import progress
from schoolhouse.types import SchoolError

C = TypeVar("C", bound=BaseConfig)


@contextmanager
def progress_bar(title: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar that is told (done, total), and starts when it is first told."""
    with ExitStack() as stack:
        advance: Callable[[int, str], None] | None = None
        before = 0

        def tell(done: int, total: int) -> None:
            nonlocal advance, before
            advance = advance or stack.enter_context(progress(title, total, unit="answer"))
            advance(done - before, "")
            before = done

        yield tell


def wants_help(args: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in args)


def parse_options(cls: type[C], args: Sequence[str], usage: str, positional: Sequence[str]) -> C | None:
    """The command's words as its config; None where help was asked for and has been given."""
    if wants_help(args):
        print_help(cls, " ".join(usage.split()[:2]), usage)
        return None
    return load(cls, None, args, positional)


def take_option(args: Sequence[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of one option, and the words without it."""
    rest = list(args)
    for i, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name == option and equals:
            return value, rest[:i] + rest[i + 1 :]
        if name == option:
            if i + 1 == len(rest) or rest[i + 1].startswith("--"):
                raise SchoolError(f"{option} takes one value, none was given")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
    return default, rest
