"""Worker processes that judge, each verdict under a hard wall clock that is kept from outside and a limit on memory.

A verifier may hang, crash, raise, leave the process or ask for memory without end: the worker is killed and replaced
where it must be, the verdict is "could not judge" with the reason, and the others are judged as if nothing had
happened. Workers build the task themselves, so only problems and replies travel.
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

from schoolhouse.tasks.base import Case, Progress, Task, grade_one
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import SchoolError, Verdict

CLOCK = 5.0
"""Seconds a verdict may take."""

START_CLOCK = 120.0
"""Seconds a worker may take to start and build its task; not counted in any verdict."""

MEMORY = 2 << 30
"""Bytes a verifier may take beyond what its worker has when its task is built. (Not kept on macOS.)"""

LONGEST_REASON = 500

_READY, _FAILED = "ready", "failed"

_AT_ONCE = 4 << 10
"""Bytes that the empty pipe to a worker takes on every system, whether it reads or not."""


@dataclass
class _Worker:
    """A process and what it is at: the index of a case, or None while it starts or waits for one."""

    process: BaseProcess
    connection: Connection
    deadline: float
    ready: bool = False
    case: int | None = None
    sending: threading.Thread | None = None


class WorkerPool:
    """Judges for one task. Workers start with the first verdict and stay until `close`; usable from any thread.

    task     opened by `open_task`, or one that can be pickled
    workers  processes
    clock    seconds a verdict may take before its worker is killed
    memory   bytes a verifier may take before it is refused more
    seconds  what each verdict of the last round took; how a slow verifier is found
    """

    def __init__(self, task: Task, workers: int = 2, clock: float = CLOCK, memory: int = MEMORY) -> None:
        self.clock, self.memory = clock, memory
        self.seconds: list[float] = []
        self._size = workers
        self._name = task.name
        self._recipe = _recipe(task)
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _stop, self._workers)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. A later call of `verdicts` starts new ones."""
        with self._lock:
            _stop(self._workers)

    def grade_all(self, cases: Sequence[Case], progress: Progress | None = None) -> list[Verdict]:
        """One verdict for each (problem, reply), in order. Raises SchoolError when the workers cannot start."""
        with self._lock:
            try:
                return self._verdicts(cases, progress)
            except BaseException:
                _stop(self._workers)  # what they are at belongs to nobody now
                raise

    def _verdicts(self, cases: Sequence[Case], progress: Progress | None) -> list[Verdict]:
        results: dict[int, Verdict] = {}
        self.seconds = [0.0] * len(cases)
        waiting = deque(range(len(cases)))
        while len(results) < len(cases):
            self._drop_the_dead()
            while len(self._workers) < min(self._size, len(cases) - len(results)):
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.ready and worker.case is None and waiting:
                    self._hand(worker, waiting.popleft(), cases, results)
            self._collect(results)
            if progress:
                progress(len(results), len(cases))
        return [results[i] for i in range(len(cases))]

    def _drop_the_dead(self) -> None:
        """Workers that ended while they had nothing to do."""
        for worker in [w for w in self._workers if w.ready and w.case is None and not w.process.is_alive()]:
            _kill(worker)
            self._workers.remove(worker)

    def _start(self) -> _Worker:
        # Spawned, not forked: threads of torch may run here.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._recipe, os.getcwd(), self.memory), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic() + START_CLOCK)

    def _hand(self, worker: _Worker, case: int, cases: Sequence[Case], results: dict[int, Verdict]) -> None:
        """Give a worker a case; its clock starts."""
        try:
            message = pickle.dumps(cases[case])
        except Exception as error:
            results[case] = Verdict(None, f"the problem cannot be sent to the verifier: {error}")
            return
        worker.case, worker.deadline = case, time.monotonic() + self.clock
        if len(message) <= _AT_ONCE:
            _send(worker.connection, message)
        else:  # a worker that does not read would hold us up in the middle of it, and no clock would be looked at
            worker.sending = threading.Thread(target=_send, args=(worker.connection, message), daemon=True)
            worker.sending.start()

    def _collect(self, results: dict[int, Verdict]) -> None:
        """Wait for the next word of any worker, or the next deadline, and act on all that is there."""
        busy = [worker for worker in self._workers if worker.case is not None or not worker.ready]
        if not busy:
            return
        patience = min(worker.deadline for worker in busy) - time.monotonic()
        spoke = set(map(id, wait([worker.connection for worker in busy], max(patience, 0.0))))
        for worker in busy:
            if id(worker.connection) in spoke:
                self._hear(worker, results)
            elif time.monotonic() >= worker.deadline:
                self._give_up(worker, results, f"no verdict within {self.clock:g} s")

    def _hear(self, worker: _Worker, results: dict[int, Verdict]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(1.0)
            code = worker.process.exitcode
            self._give_up(worker, results, f"the verifier's process ended (exit code {code})")
            return
        if worker.ready and worker.case is not None:
            self._time(worker)
            results[worker.case] = Verdict(*message)
            worker.case = None
        elif message[0] == _READY:
            worker.ready = True
        else:
            raise SchoolError(f"the verifier of task {self._name} cannot start in a worker process: {message[1]}")

    def _give_up(self, worker: _Worker, results: dict[int, Verdict], reason: str) -> None:
        if worker.case is None:
            raise SchoolError(
                f"the verifier of task {self._name} cannot start in a worker process (exit code "
                f"{worker.process.exitcode}); if a script of yours trains, put what it does under "
                "`if __name__ == '__main__':`, because worker processes import it"
            )
        self._time(worker)
        results[worker.case] = Verdict(None, reason)
        _kill(worker)
        self._workers.remove(worker)

    def _time(self, worker: _Worker) -> None:
        assert worker.case is not None
        self.seconds[worker.case] = time.monotonic() - (worker.deadline - self.clock)


def _stop(workers: list[_Worker]) -> None:
    while workers:
        _kill(workers.pop())


def _kill(worker: _Worker) -> None:
    """End a worker and, while it lives, whatever it has started."""
    if worker.process.is_alive() and worker.process.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
    if worker.sending:
        worker.sending.join(1.0)  # it ends with its reader
        if worker.sending.is_alive():  # somebody else holds the other end: leave it to him
            return
    worker.connection.close()


def _send(connection: Connection, message: bytes) -> None:
    with contextlib.suppress(OSError):  # a worker that has gone is noticed in _collect
        connection.send_bytes(message)


# ---- how a worker comes by its task


def _recipe(task: Task) -> tuple[str, int] | bytes:
    if task.spec:
        return task.spec
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise SchoolError(
            f"task {task.name or type(task).__name__} cannot be sent to worker processes ({error}); put its class into "
            "a file and open it as open_task('python:FILE.py:CLASS')"
        ) from error


def _work(connection: Connection, recipe: tuple[str, int] | bytes, folder: str, memory: int) -> None:
    """The life of a worker: build the task, then a verdict for each case, until the other end is closed."""
    os.setsid()  # Ctrl-C is for the parent; and the group can be killed as one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        os.chdir(folder)
        task = pickle.loads(recipe) if isinstance(recipe, bytes) else open_task(*recipe)
        task.warm_up()
        _limit(memory)
    except (Exception, SystemExit) as error:
        known = isinstance(error, SchoolError)
        connection.send((_FAILED, str(error) if known else f"{type(error).__name__}: {error}"))
        return
    connection.send((_READY, ""))
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        problem, reply = pickle.loads(message)
        connection.send(_plain(grade_one(task, problem, reply)))


def _limit(memory: int) -> None:
    """Let this process have so many bytes more: an allocation beyond fails, with MemoryError in Python."""
    with contextlib.suppress(OSError, ValueError):  # a system without /proc, or with a lower limit of its own
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _plain(verdict: Verdict) -> tuple[float | None, str, dict[str, float]]:
    """A verdict as plain numbers and text: a verifier may have used its own kinds, which the parent does not know."""
    try:
        parts = {str(name): float(value) for name, value in verdict.parts.items()}
        score = None if verdict.reward is None else float(verdict.reward)
    except (TypeError, ValueError) as error:
        return None, f"the verdict is not made of numbers: {error}"[:LONGEST_REASON], {}
    return score, str(verdict.reason)[:LONGEST_REASON], parts


def _end_with_parent() -> None:
    """A worker whose parent was killed has nobody to keep its clock."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
