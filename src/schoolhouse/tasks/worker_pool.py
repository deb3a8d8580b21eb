"""Worker processes that grade completions. The grading of each completion has a timeout and a memory limit.

The parent process enforces the timeout. A verifier can run forever, crash, raise an exception, exit, or allocate memory
without limit. If a verifier fails, its worker process is, if necessary, killed and replaced. The verdict of a failed
verifier has a reason but no reward. All other completions are graded as usual. Each worker process opens the task
itself, so that only problems and completions are sent to the workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from schoolhouse.tasks.base import Case, ProgressFn, Task, grade_one
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.user_file import definition, describe_error
from schoolhouse.types import SchoolError, Verdict

TIMEOUT = 5.0
"""The maximum time for one verdict, in seconds."""

START_TIMEOUT = 120.0
"""The maximum time in seconds for a worker to start and open its task. The time for a verdict is separate."""

MEMORY_LIMIT = 2 << 30
"""The memory in bytes that a verifier can allocate after its worker has opened the task. macOS has no such limit."""

MAX_REASON_CHARS = 500

_READY, _FAILED = "ready", "failed"

_PIPE_BYTES = 4 << 10
"""The number of bytes that every system can write to an empty pipe before a process reads them."""


@dataclass
class _Worker:
    """A worker process and the index of the case that it grades. The index is None while the worker starts or is idle.

    A case is a problem with a completion to grade.
    """

    process: BaseProcess
    connection: Connection
    deadline: float
    ready: bool = False
    case: int | None = None
    sender: threading.Thread | None = None


class WorkerPool:
    """A pool of worker processes that grade completions of one task. Any thread can use the pool.

    The workers start at the first call of `grade_all` and run until `close` is called.

    `task` is a task from `open_task`, or a task that can be pickled.
    `num_workers` is the maximum number of worker processes.
    `timeout` is the maximum time for one verdict in seconds; a worker that needs more time is killed.
    `memory_limit` is the maximum memory in bytes that a verifier can allocate.
    `seconds` has the duration of each verdict of the last call, in seconds.
    """

    def __init__(
        self, task: Task, num_workers: int = 2, timeout: float = TIMEOUT, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        self.timeout, self.memory_limit = timeout, memory_limit
        self.seconds: list[float] = []
        self._size = num_workers
        self._name = task.name
        self._source = _task_source(task)
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _stop, self._workers)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers of the pool. A later call of `grade_all` starts new workers."""
        with self._lock:
            _stop(self._workers)

    def grade_all(self, cases: Sequence[Case], progress: ProgressFn | None = None) -> list[Verdict]:
        """Grade each pair of a problem and a completion. Returns the verdicts in the same order.

        Raises SchoolError if the workers cannot start.
        """
        with self._lock:
            try:
                return self._grade_all(cases, progress)
            except BaseException:
                _stop(self._workers)  # their current cases are abandoned
                raise

    def _grade_all(self, cases: Sequence[Case], progress: ProgressFn | None) -> list[Verdict]:
        results: dict[int, Verdict] = {}
        self.seconds = [0.0] * len(cases)
        waiting = deque(range(len(cases)))
        while len(results) < len(cases):
            self._remove_dead_workers()
            while len(self._workers) < min(self._size, len(cases) - len(results)):
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.ready and worker.case is None and waiting:
                    self._submit(worker, waiting.popleft(), cases, results)
            self._collect(results)
            if progress:
                progress(len(results), len(cases))
        return [results[i] for i in range(len(cases))]

    def _remove_dead_workers(self) -> None:
        """Remove the worker processes that have ended while they were idle."""
        for worker in [w for w in self._workers if w.ready and w.case is None and not w.process.is_alive()]:
            _kill(worker)
            self._workers.remove(worker)

    def _start(self) -> _Worker:
        # Spawned, not forked: threads of torch may run here.
        context = multiprocessing.get_context("spawn")
        parent_end, worker_end = context.Pipe()
        arguments = (worker_end, self._source, os.getcwd(), self.memory_limit)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        worker_end.close()
        return _Worker(process, parent_end, time.monotonic() + START_TIMEOUT)

    def _submit(self, worker: _Worker, case: int, cases: Sequence[Case], results: dict[int, Verdict]) -> None:
        """Send a case to an idle worker and start its timeout."""
        try:
            message = pickle.dumps(cases[case])
        except Exception as error:
            reason = f"the problem cannot be sent to a worker process ({error}); put only plain data into `info`"
            results[case] = Verdict(None, reason)
            return
        worker.case, worker.deadline = case, time.monotonic() + self.timeout
        if len(message) <= _PIPE_BYTES:
            _send(worker.connection, message)
        else:  # a worker that does not read would block this thread, and timeouts would not be checked
            worker.sender = threading.Thread(target=_send, args=(worker.connection, message), daemon=True)
            worker.sender.start()

    def _collect(self, results: dict[int, Verdict]) -> None:
        """Wait for the next message of a worker or for the next deadline.

        After the wait, all messages that have arrived and all deadlines that have passed are handled.
        """
        busy = [worker for worker in self._workers if worker.case is not None or not worker.ready]
        if not busy:
            return
        remaining = min(worker.deadline for worker in busy) - time.monotonic()
        readable = set(map(id, wait([worker.connection for worker in busy], max(remaining, 0.0))))
        for worker in busy:
            if id(worker.connection) in readable:
                self._receive(worker, results)
            elif time.monotonic() >= worker.deadline:
                self._give_up(worker, results, f"no verdict within {self.timeout:g} s")

    def _receive(self, worker: _Worker, results: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(1.0)
            code = worker.process.exitcode
            self._give_up(worker, results, f"the worker process ended while grading (exit code {code})")
            return
        if worker.ready and worker.case is not None:
            self._record_seconds(worker)
            results[worker.case] = Verdict(*message)
            worker.case = None
        elif message[0] == _READY:
            worker.ready = True
        else:
            raise SchoolError(f"the task {self._name} cannot be opened in a worker process: {message[1]}")

    def _give_up(self, worker: _Worker, results: dict[int, Verdict], reason: str) -> None:
        if worker.case is None:
            raise SchoolError(
                f"task {self._name} cannot be opened in a worker process (exit code {worker.process.exitcode}); if you "
                "run a script, put its code under `if __name__ == '__main__':`, because workers import the script"
            )
        self._record_seconds(worker)
        results[worker.case] = Verdict(None, reason)
        _kill(worker)
        self._workers.remove(worker)

    def _record_seconds(self, worker: _Worker) -> None:
        assert worker.case is not None
        self.seconds[worker.case] = time.monotonic() - (worker.deadline - self.timeout)


def _stop(workers: list[_Worker]) -> None:
    while workers:
        _kill(workers.pop())


def _kill(worker: _Worker) -> None:
    """Kill a worker process. If the worker is still alive, all processes that it has started are killed too."""
    if worker.process.is_alive() and worker.process.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
    if worker.sender:
        worker.sender.join(1.0)  # it ends with its reader
        if worker.sender.is_alive():  # another process holds the other end, and closes it
            return
    worker.connection.close()


def _send(connection: Connection, message: bytes) -> None:
    with contextlib.suppress(OSError):  # _collect notices a worker that has ended
        connection.send_bytes(message)


# ---- in a worker process


def _task_source(task: Task) -> tuple[str, int] | bytes:
    """Return the name and the seed from which a worker opens the task. If the task has no name, return its pickle."""
    if task.spec:
        return task.spec
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise SchoolError(
            f"task {task.name or type(task).__name__} cannot be sent to worker processes ({error}); write its class to "
            "a file, and open the task with open_task('python:FILE.py:CLASS')"
        ) from error


def _work(connection: Connection, source: tuple[str, int] | bytes, folder: str, memory_limit: int) -> None:
    """Run a worker process: open the task, then grade each case until the connection is closed."""
    os.setsid()  # Ctrl-C reaches only the parent, and the process group can be killed as one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        os.chdir(folder)
        task = pickle.loads(source) if isinstance(source, bytes) else open_task(*source)
        task.warm_up()
        _limit_memory(memory_limit)
    except (Exception, SystemExit) as error:
        connection.send((_FAILED, str(error) if isinstance(error, SchoolError) else describe_error(error)))
        return
    connection.send((_READY, ""))
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        problem, completion = pickle.loads(message)
        connection.send(_to_plain(grade_one(task, problem, completion), task))


def _limit_memory(memory_limit: int) -> None:
    """Limit the memory that this process can still allocate. Above the limit, Python raises MemoryError."""
    with contextlib.suppress(OSError, ValueError):  # a system without /proc, or with a lower limit of its own
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + memory_limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _to_plain(verdict: Verdict, task: Task) -> tuple[float | None, str, dict[str, float]]:
    """Convert a verdict to plain numbers and text, because the parent process cannot unpickle every type."""
    try:
        parts = {str(name): float(value) for name, value in verdict.parts.items()}
        reward = None if verdict.reward is None else float(verdict.reward)
    except (TypeError, ValueError) as error:
        reason = f"{definition(type(task).grade)}: the verdict is not made of numbers: {error}"
        return None, reason[:MAX_REASON_CHARS], {}
    return reward, str(verdict.reason)[:MAX_REASON_CHARS], parts


def _end_with_parent() -> None:
    """Wait until the parent process ends, then end this worker process.

    Without its parent process, a worker has no timeouts.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
