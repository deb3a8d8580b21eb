"""End worker processes and their subprocesses, and describe exit codes and the line that a worker was running."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from schoolhouse.tasks.user_file import in_user_code

ASK_SIGNAL = signal.SIGUSR1
"""A worker that gets this signal writes the current line of each of its threads."""

_FRAME = re.compile(r'^ *File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


def ending(code: int | None) -> str:
    """Describe the exit code of a worker process."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            memory = "; the system ends processes in this way if the memory is full" if name == "SIGKILL" else ""
            return f"the worker process was ended by {name} while grading (exit code {code}{memory})"
    return f"the worker process ended while grading (exit code {code})"


def where(trace: Connection, pid: int | None) -> str:
    """Return ` at FILE:LINE in FUNCTION` for the line that a worker is running, or "" if the line is unknown.

    If `pid` is the process id of a worker that is alive, the worker is asked for its line. A worker that has crashed
    has already written its line.
    """
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, ASK_SIGNAL)
        if not wait([trace], 0.2):
            return ""
        time.sleep(0.02)  # the frames arrive one after another
    os.set_blocking(trace.fileno(), False)
    try:
        text = os.read(trace.fileno(), 1 << 16).decode("utf-8", "replace")
    except OSError:
        return ""
    frames = [match.groups() for match in _FRAME.finditer(text)]
    own = [f" at {shown}:{line} in {function}" for file, line, function in frames if (shown := in_user_code(file))]
    return own[0] if own else ""


def end_with_children(process: BaseProcess) -> None:
    """Kill a worker process and all processes that it has started.

    An ended worker keeps its process id until it is joined, so its process group cannot belong to another program.
    """
    if process.pid is not None:
        kill_tree(process.pid)
        process.kill()
        process.join()


def kill_tree(pid: int) -> None:
    """Kill all descendants of a worker process, even in other process groups, and then the process group of the
    worker."""
    others = descendants(pid)
    for each in others:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)
    for each in (*others, pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the process ids of all descendants of a process. Returns [] on a system without /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        more = children.get(waiting.pop(), [])
        found += more
        waiting += more
    return found
