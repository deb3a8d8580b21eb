"""How worker processes end, and what ends with them."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from schoolhouse.tasks.worker_end import descendants, end_with_children, ending

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def sleep_with_children(connection: Connection) -> None:
    """Start a process in this group, and a process in a group of its own that starts another one."""
    os.setsid()
    near = subprocess.Popen(["sleep", "60"])
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    far = subprocess.Popen(command, start_new_session=True, text=True, stdin=pipe, stdout=pipe)
    assert far.stdout
    connection.send((near.pid, far.pid, int(far.stdout.readline())))
    time.sleep(60)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.01) for _ in range(500))


@needs_proc
def test_all_descendants_end_with_a_worker() -> None:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=sleep_with_children, args=(writer,))
    process.start()
    pids = reader.recv()
    assert process.pid
    assert sorted(descendants(process.pid)) == sorted(pids)
    assert all(map(runs, pids))
    end_with_children(process)
    assert not process.is_alive()
    assert until(lambda: not any(map(runs, pids)))


@needs_proc
def test_this_process_is_no_descendant_of_its_children() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in descendants(os.getpid())
        assert descendants(child.pid) == []
        child.kill()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (3, "ended while grading (exit code 3)"),
        (-11, "was ended by SIGSEGV while grading (exit code -11)"),
        (
            -9,
            "was ended by SIGKILL while grading (exit code -9; the system ends processes in this way if the memory is",
        ),
        (-250, "ended while grading (exit code -250)"),
        (None, "ended while grading (exit code None)"),
    ],
)
def test_an_exit_code_in_words(code: int | None, text: str) -> None:
    assert ending(code).startswith(f"the worker process {text}")
