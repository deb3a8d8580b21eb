"""Start a worker process, send cases to the worker, and end the worker. This code runs in the parent process."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from schoolhouse.tasks.base import Task
from schoolhouse.tasks.worker_end import descendants, end_with_children
from schoolhouse.tasks.worker_messages import MessageReader
from schoolhouse.tasks.worker_process import WorkerStart, work
from schoolhouse.types import SchoolError

_STOP_SECONDS = 10.0
"""The time in seconds that idle workers have to end themselves."""

_PIPE_BYTES = 4 << 10
"""The number of bytes that every system can write to an empty pipe before a process reads them."""


@dataclass
class Worker:
    """A worker process, and the cases that the worker is grading.

    `sent` has the indices of the cases, and `open` has the indices of cases without a verdict. `sent` and `open` are
    empty while the worker starts or is idle. `started` is the time of the start or of the last request, and `since` is
    the time of the last reply. `num_calls` is the number of requests that the worker has completed. `is_new` is False
    if the worker replaces another worker.
    """

    process: BaseProcess
    requests: Connection
    replies: Connection
    trace: Connection
    reader: MessageReader
    is_new: bool
    started: float
    since: float
    limit: float = 0.0
    ready: bool = False
    num_calls: int = 0
    has_graded: bool = False
    sent: list[int] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    sender: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return bool(self.sent) or not self.ready


def start_worker(start: WorkerStart, *, is_new: bool) -> Worker:
    """Start a worker process."""
    context = multiprocessing.get_context("spawn")  # not forked: threads of torch may run here
    request_reader, request_writer = context.Pipe(duplex=False)
    reply_reader, reply_writer = context.Pipe(duplex=False)
    trace_reader, trace_writer = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(request_reader, reply_writer, trace_writer, start), daemon=True)
    process.start()
    for end in (request_reader, reply_writer, trace_writer):
        end.close()
    reader, now = MessageReader(reply_reader.fileno()), time.monotonic()
    return Worker(process, request_writer, reply_reader, trace_reader, reader, is_new, now, now)


def send_cases(worker: Worker, message: bytes) -> None:
    """Send a request to a worker without waiting until the worker reads it."""
    if len(message) <= _PIPE_BYTES:
        _send(worker.requests, message)
    else:  # a worker that does not read would block this thread, and timeouts would not be checked
        worker.sender = threading.Thread(target=_send, args=(worker.requests, message), daemon=True)
        worker.sender.start()


def _send(connection: Connection, message: bytes) -> None:
    with contextlib.suppress(OSError):  # _collect notices a worker that has ended
        connection.send_bytes(message)


def stop_workers(workers: list[Worker]) -> None:
    """End all workers of a list, and empty the list.

    An idle worker without processes of its own has a short time to end itself, so that libraries can free semaphores.
    """
    idle = [w for w in workers if not w.busy and w.process.pid and not descendants(w.process.pid)]
    for worker in idle:
        worker.requests.close()
    deadline = time.monotonic() + _STOP_SECONDS
    for worker in idle:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    while workers:
        end_worker(workers.pop())


def end_worker(worker: Worker) -> None:
    """Kill a worker process and all processes that it has started."""
    end_with_children(worker.process)
    worker.replies.close()
    worker.trace.close()
    if worker.sender:
        worker.sender.join(1.0)  # the thread ends when its reader ends
        if worker.sender.is_alive():  # another process holds the other end of the pipe
            return
    worker.requests.close()


def task_source(task: Task) -> tuple[str, int] | bytes:
    """Return the name and the seed of a task, with which a worker opens the task. For a task without a name, return the
    pickled task."""
    if task.spec:
        return task.spec
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise SchoolError(
            f"task {task.name or type(task).__name__} cannot be sent to worker processes ({error}); write its class to "
            "a file, and open the task with open_task('python:FILE.py:CLASS')"
        ) from error
