"""A Python file of the user's, run as a module of its own: a task, a reward function, a search strategy."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from schoolhouse.types import SchoolError


def load_module(path: Path, usage: str) -> ModuleType:
    """Run a file as a module of its own, with the files beside it importable.

    usage  how to name the file, for the message where there is none
    Raises SchoolError naming the file and the line that failed.
    """
    if not path.is_file():
        raise SchoolError(f"there is no file {path}; write {usage}")
    place = path.resolve()
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    name = f"schoolhouse_user_{place.stem}_{hashlib.blake2b(str(place).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise SchoolError(f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SchoolError(f"{where_in(path, error)} cannot be run: {type(error).__name__}: {error}") from error
    return module


def where_in(path: Path, error: BaseException) -> str:
    """`FILE:LINE`, the last line of a file that an exception passed through; `FILE` where it passed through none."""
    place = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]
    if isinstance(error, SyntaxError) and error.filename == place:
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines and lines[-1] else str(path)
