"""The code of a worker process, which opens the task and grades the cases that the parent process sends.

The file worker_pool.py starts and ends the worker processes. The file worker_messages.py defines the format of the
replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import multiprocessing
import os
import pickle
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from schoolhouse.tasks.async_calls import run_async
from schoolhouse.tasks.base import Case, Task, check_batch, failed, grade_async, grade_with_trace, grades_together
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.user_file import definition, describe_error
from schoolhouse.tasks.worker_end import ASK_SIGNAL, kill_tree
from schoolhouse.tasks.worker_messages import MAX_REASON_CHARS, MAX_TRACE_CHARS, send_message, verdict_fields
from schoolhouse.types import SchoolError, Verdict

ReportFn = Callable[[int, Verdict, str], None]
"""A function that is called with the index of a case, its verdict, and the traceback of an exception or ""."""


@dataclass(frozen=True)
class WorkerStart:
    """The settings with which a worker starts.

    `source` has the name and the seed of the task, or the pickled task. `folder` is the working directory.
    `memory_limit` is in bytes, and 0 means no limit. `time_limit` is the number of seconds for one completion.
    `threads` is the number of threads of libraries such as torch.
    """

    source: tuple[str, int] | bytes
    folder: str
    memory_limit: int
    time_limit: float
    threads: int


def work(requests: Connection, replies: Connection, trace: Connection, start: WorkerStart) -> None:
    """Run a worker process until the parent process closes `requests`.

    A request is the pickle of (seconds, cases). Each reply is a line of JSON. If the process crashes, or if the parent
    process asks, the current lines of the code are written to `trace`. The text that a verifier prints goes to stderr.
    """
    with contextlib.suppress(OSError):  # a service can run without stderr
        os.dup2(2, 1)  # the text that a verifier prints is not part of the output of a command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a worker that is killed has shown its lines
    os.setsid()  # Ctrl-C reaches only the parent, and the whole process group can be killed
    multiprocessing.current_process().daemon = False  # a daemonic process cannot start processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable(trace.fileno())
    faulthandler.register(ASK_SIGNAL, trace.fileno())
    os.environ.setdefault("OMP_NUM_THREADS", str(start.threads))
    descriptor = replies.fileno()
    try:
        os.chdir(start.folder)
        task = pickle.loads(start.source) if isinstance(start.source, bytes) else open_task(*start.source)
        task.__dict__["time_limit"] = start.time_limit
        task.warm_up()
        if start.memory_limit:
            _limit_memory(start.memory_limit)
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, SchoolError) else describe_error(error)
        send_message(descriptor, failed=reason[: 4 * MAX_REASON_CHARS])
        return
    send_message(descriptor, ready=True)
    place = definition(type(task).grade)

    def report(case: int, verdict: Verdict, trace: str) -> None:
        send_message(descriptor, case=case, trace=trace[-MAX_TRACE_CHARS:], **verdict_fields(verdict, place))

    while True:
        try:
            message = requests.recv_bytes()
        except (EOFError, OSError):
            return
        seconds, cases = pickle.loads(message)
        if grades_together(task):
            run_async(_grade_together(task, cases, seconds, report))
        elif task.batch == "one":
            for at, case in enumerate(cases):
                report(at, *grade_with_trace(task, case))
        else:
            try:
                verdicts = check_batch(task, cases, task.grade_batch(cases))
            except (Exception, SystemExit) as error:
                verdict, lines = failed(error)
                retry = not isinstance(error, SchoolError)  # a list of a wrong length would be wrong again
                reason = verdict.reason[:MAX_REASON_CHARS]
                send_message(descriptor, error=reason, trace=lines[-MAX_TRACE_CHARS:], retry=retry)
                continue
            for at, verdict in enumerate(verdicts):
                report(at, verdict, "")
        send_message(descriptor, done=True)


async def _grade_together(task: Task, cases: Sequence[Case], seconds: float, report: ReportFn) -> None:
    """Await the coroutines of all cases at the same time. Each coroutine has its own time limit."""

    async def grade(at: int, case: Case) -> None:
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                verdict, lines = await grade_async(task, case)
        except TimeoutError:
            verdict, lines = Verdict(None, f"no verdict within {seconds:g} s"), ""
        report(at, verdict, lines)

    await asyncio.gather(*(grade(at, case) for at, case in enumerate(cases)))


def _limit_memory(memory_limit: int) -> None:
    """Limit the memory that this process can still allocate. If the process exceeds the limit, Python raises
    MemoryError."""
    with contextlib.suppress(OSError, ValueError):  # the system has no /proc, or already has a lower limit
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + memory_limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _end_with_parent() -> None:
    """Wait until the parent process ends, then kill this worker and the processes that it has started.

    Without the parent process, nothing would stop a slow worker.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        kill_tree(os.getpid())
