"""Run a user's Python file as a separate module. The file can define a task, a reward function, a search or a recipe.

Each error message names the file and the line of the user's code that raised the error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from schoolhouse.types import SchoolError

_PACKAGE = Path(__file__).resolve().parents[1]
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()


class UserCodeError(SchoolError):
    """An error in a user's file. The message begins with the file and the line."""


class _Frame(NamedTuple):
    filename: str
    line: int
    function: str


def load_module(path: Path, usage: str) -> ModuleType:
    """Run a Python file as a separate module. The file can import other files of its folder.

    The argument `usage` shows how to write the path; this text appears in the error message if the file does not exist.
    Raises SchoolError if the file cannot be run; the message names the file and the line.
    """
    if not path.is_file():
        raise SchoolError(f"the file {path} does not exist; write {usage}")
    resolved = path.resolve()
    if str(resolved.parent) not in sys.path:
        sys.path.append(str(resolved.parent))
    name = f"schoolhouse_user_{resolved.stem}_{hashlib.blake2b(str(resolved).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise SchoolError(f"{path} is not a Python file; give a file with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        place = raised_at(error)
        elsewhere = f"{place}: " if place and not _same_file(place, resolved) else ""
        frames = _frames_in(path, error)
        line = f":{frames[-1].line}" if frames else ""
        raise SchoolError(f"{path}{line} cannot be run: {elsewhere}{_message(error)}") from error
    return module


@contextmanager
def user_errors(file: Path | None) -> Generator[None]:
    """Convert errors of the block to a UserCodeError with the message `FILE:LINE: in FUNCTION: ErrorType: message`.

    The message names the line of the innermost traceback frame in `file`. A SchoolError keeps its own message after the
    line. If the traceback has no frame in `file`, or if `file` is None, the error is raised unchanged. The flag
    `--debug` shows the whole traceback.
    """
    try:
        yield
    except UserCodeError:
        raise
    except Exception as error:
        frames = _frames_in(file, error) if file else []
        if not frames:
            raise
        line, function = frames[-1].line, frames[-1].function
        place = f"{file}:{line}" if function == "<module>" else f"{file}:{line}: in {function}"
        raise UserCodeError(f"{place}: {_message(error)}") from error


def describe_error(error: BaseException) -> str:
    """Describe an exception and the line of the user's code that raised it, as in `FILE:LINE: KeyError: 'answer'`.

    The standard library, installed packages and this package do not count as the user's code. If the exception did not
    pass through the user's code, the text names the innermost line of any file.
    """
    place = raised_at(error)
    return f"{f'{place}: ' if place else ''}{_message(error)}"


def definition(thing: Callable[..., Any] | type) -> str:
    """Return `FILE:LINE` of the definition of a function, method or class, or its name if the place is unknown."""
    try:
        if inspect.isclass(thing):
            return f"{_shown(inspect.getfile(thing))}:{inspect.getsourcelines(thing)[1]}"
        code = inspect.unwrap(thing).__code__
        return f"{_shown(code.co_filename)}:{code.co_firstlineno}"
    except (AttributeError, OSError, TypeError):
        return getattr(thing, "__qualname__", repr(thing))


def raised_at(error: BaseException) -> str:
    """Return `FILE:LINE` of the innermost line of the user's code that an exception passed through.

    If the exception did not pass through the user's code, the innermost line of any file is returned.
    """
    frames = _frames(error)
    own = [frame for frame in frames if _is_user_code(frame.filename)]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    return f"{_shown(frame.filename)}:{frame.line}"


def short_trace(error: BaseException) -> str:
    """Return the lines of the user's code in the traceback of an exception, one frame per line. The innermost frame is
    last."""
    frames = [frame for frame in _frames(error) if _is_user_code(frame.filename)]
    return "\n".join(f"  {_shown(frame.filename)}:{frame.line} in {frame.function}" for frame in frames)


def in_user_code(filename: str) -> str:
    """Return the path of a user's file for messages. Returns "" if the file is not the user's code."""
    return _shown(filename) if not filename.startswith("<") and _is_user_code(filename) else ""


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, SchoolError) else f"{type(error).__name__}: {error}"


def _frames(error: BaseException) -> list[_Frame]:
    """Return the traceback frames that an exception passed through, with the outermost frame first.

    For a syntax error, the line with the wrong syntax is added as the last frame.
    """
    frames = [
        _Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        frames.append(_Frame(error.filename, error.lineno, "<module>"))
    return [frame for frame in frames if not frame.filename.startswith("<")]


def _frames_in(path: Path, error: BaseException) -> list[_Frame]:
    """Return only those traceback frames of an exception that are in the file `path`."""
    return [frame for frame in _frames(error) if Path(frame.filename).resolve() == path.resolve()]


def _is_user_code(filename: str) -> bool:
    path = Path(filename).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not (installed or path.is_relative_to(_PACKAGE) or path.is_relative_to(_STANDARD_LIBRARY))


def _same_file(place: str, path: Path) -> bool:
    return Path(place.rpartition(":")[0]).resolve() == path


def _shown(filename: str) -> str:
    """Return the path from the working directory if the file is inside this directory, otherwise the full path."""
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename
