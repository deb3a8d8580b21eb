"""Errors in a user's own file (a recipe, a task, a reward function), shown as one line with the file's line number."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from schoolhouse.types import SchoolError


class UserCodeError(SchoolError):
    """An error in a user's file. The message begins with the file and the line."""


@contextmanager
def user_errors(file: Path | None) -> Generator[None]:
    """Raise errors from the block as UserCodeError `FILE:LINE: in FUNCTION: ErrorType: message`.

    The line is that of the innermost traceback frame in `file`. A SchoolError keeps its own message after the line. If
    the traceback has no frame in `file`, or if `file` is None, the error is raised unchanged. `--debug` shows the whole
    traceback.
    """
    try:
        yield
    except UserCodeError:
        raise
    except Exception as error:
        place = _place(error, file.resolve()) if file else ""
        if not place:
            raise
        raise UserCodeError(f"{file}:{place}: {_message(error)}") from error


def _place(error: Exception, file: Path) -> str:
    """`LINE: in FUNCTION`, or `LINE` outside of functions; empty if the error did not come through the file."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == file:
        return str(error.lineno or 0)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).resolve() == file:
            return f"{frame.lineno}" if frame.name == "<module>" else f"{frame.lineno}: in {frame.name}"
    return ""


def _message(error: Exception) -> str:
    if isinstance(error, SchoolError):
        return str(error)
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
