"""Worker processes that grade completions. The grading of each completion has a timeout and a memory limit.

The parent process enforces the timeout. A verifier can run forever, crash, raise an exception, exit, or allocate memory
without limit. If a verifier fails, its worker process is, if necessary, killed and replaced. The verdict of a failed
verifier has a reason but no reward. All other completions are graded as usual. Each worker process opens the task
itself, so that only problems and completions are sent to the workers. The replies of a worker are JSON of limited size.
The parent process never unpickles bytes from a worker.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from schoolhouse.tasks.base import TIMEOUT, Case, ProgressFn, Task, grades_together
from schoolhouse.tasks.worker_end import ending, where
from schoolhouse.tasks.worker_handle import Worker, end_worker, send_cases, start_worker, stop_workers, task_source
from schoolhouse.tasks.worker_messages import BadMessageError, verdict_of
from schoolhouse.tasks.worker_process import WorkerStart
from schoolhouse.types import SchoolError, Verdict

BATCH_TIMEOUT = 60.0
"""The default time limit for a call with several completions, in seconds."""

START_TIMEOUT = 120.0
"""The time limit in seconds for a worker to start and to open its task. If `load_timeout` is longer, `load_timeout` is
the limit."""

LOAD_TIMEOUT = 60.0
"""The default time in seconds that is added to the time limit of a worker's first call."""

MEMORY_LIMIT = 2 << 30
"""The memory in bytes that a verifier can allocate after its worker has opened the task. macOS has no such limit."""

LOST_LIMIT = 32
"""If the workers of this many completions have ended, and no completion has a verdict yet, the other completions are
not graded."""

_CHECK_SECONDS = 1.0
"""The maximum time in seconds between two checks whether a worker process has ended."""


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """A pool of worker processes that grade completions of one task. Any thread can use the pool.

    The workers start at the first call of `grade_all` and run until `close` is called.

    `task` is a task from `open_task`, or a task that can be pickled.
    `num_workers` is the maximum number of worker processes; 0 means one worker for each core.
    `timeout` is the maximum time for one call of the verifier in seconds; a worker that needs more time is killed. 0
        means 5 seconds for one completion, and 60 seconds for a call with several completions.
    `memory_limit` is the maximum memory in bytes that a verifier can allocate; 0 means no limit.
    `load_timeout` is the time in seconds that is added to the time limit of a worker's first call, because a verifier
        of the user can load a model in this call. For a worker that replaces a killed worker, three times the duration
        of the longest first call is added instead. If the added time was not enough for one worker, no other worker
        gets additional time.
    `seconds` has the duration of each verdict of the last call, in seconds. The duration of a call with several
        completions is divided equally between the verdicts.
    `traces` has the lines of the user's code for each reason of an exception.
    """

    def __init__(
        self,
        task: Task,
        num_workers: int = 0,
        timeout: float = 0.0,
        memory_limit: int = MEMORY_LIMIT,
        load_timeout: float = LOAD_TIMEOUT,
    ) -> None:
        self.timeout, self.memory_limit, self.load_timeout = timeout, memory_limit, load_timeout
        self.seconds: list[float] = []
        self.traces: dict[str, str] = {}
        self.num_workers = num_workers or num_cores()
        self._name, self._batch, self._together = task.name, task.batch, grades_together(task)
        self._source = task_source(task)
        self._loads = not task.spec or task.spec[0].startswith("python:")  # the package's own tasks load in `warm_up`
        self._first_call: float | None = None  # seconds of the longest first call that succeeded
        self._num_started = self._num_lost = self._num_graded = 0
        self._load_failed = False
        self._last_reason = ""
        self._warned = False
        self._workers: list[Worker] = []
        self._waiting: deque[list[int]] = deque()
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, stop_workers, self._workers)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers of the pool. A later call of `grade_all` starts new workers."""
        with self._lock:
            stop_workers(self._workers)

    def grade_all(self, cases: Sequence[Case], progress: ProgressFn | None = None) -> list[Verdict]:
        """Grade each pair of a problem and a completion. Returns the verdicts in the same order.

        Raises SchoolError if the workers cannot start.
        """
        with self._lock:
            try:
                return self._grade_all(cases, progress)
            except BaseException:
                stop_workers(self._workers)  # the current cases of the workers get no verdict
                raise

    def _grade_all(self, cases: Sequence[Case], progress: ProgressFn | None) -> list[Verdict]:
        results: dict[int, Verdict] = {}
        self.seconds = [0.0] * len(cases)
        self._waiting = deque(self._calls(len(cases)))
        while len(results) < len(cases):
            self._remove_dead_workers()
            num_calls = len(self._waiting) + sum(bool(worker.sent) for worker in self._workers)
            while len(self._workers) < min(self.num_workers, num_calls):
                shared = 1 if self._batch in ("whole", "auto") else self.num_workers
                threads = max(1, num_cores() // shared)
                start = WorkerStart(self._source, os.getcwd(), self.memory_limit, self._limit_of(1), threads)
                self._workers.append(start_worker(start, is_new=self._num_started < self.num_workers))
                self._num_started += 1
            for worker in self._workers:
                if not worker.busy and self._waiting:
                    self._submit(worker, self._waiting.popleft(), cases, results)
            self._collect(results)
            if not self._num_graded and self._num_lost >= max(LOST_LIMIT, 2 * self.num_workers):
                self._skip(results)
            if progress:
                progress(len(results), len(cases))
        deadline = time.monotonic() + _CHECK_SECONDS
        while any(worker.sent and not worker.open for worker in self._workers) and time.monotonic() < deadline:
            self._collect(results)  # read the end of the last call, which follows its last verdict
        return [results[i] for i in range(len(cases))]

    def _calls(self, num_cases: int) -> list[list[int]]:
        """Return the indices of the cases of each call of the verifier."""
        if self._batch in ("whole", "auto"):
            size = num_cases
        elif self._batch == "split" or self._together:
            size = -(-num_cases // self.num_workers)
        else:
            size = 1
        return [list(range(start, min(start + size, num_cases))) for start in range(0, num_cases, max(1, size))]

    def _remove_dead_workers(self) -> None:
        """Remove the worker processes that have ended while they were idle."""
        for worker in [w for w in self._workers if not w.busy and not w.process.is_alive()]:
            self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        end_worker(worker)

    def _limit_of(self, num_cases: int) -> float:
        """Return the time limit in seconds for a call of the verifier with `num_cases` completions."""
        return self.timeout or (BATCH_TIMEOUT if num_cases > 1 and not self._together else TIMEOUT)

    def _submit(self, worker: Worker, call: list[int], cases: Sequence[Case], results: dict[int, Verdict]) -> None:
        """Send the cases of a call to an idle worker, and start the timeout of the call."""
        limit = self._limit_of(len(call))
        seconds = limit + self._load_seconds(worker)
        try:
            message = pickle.dumps((seconds, [cases[case] for case in call]))
        except Exception as error:
            if len(call) > 1:
                self._waiting.extend([case] for case in call)
                return
            reason = f"the problem cannot be sent to a worker process ({error}); put only plain data into `info`"
            results[call[0]] = Verdict(None, reason)
            return
        worker.sent, worker.open = call, set(call)
        # coroutines enforce the limit themselves; the parent process waits a little longer
        worker.limit = limit * 1.25 + 1.0 if self._together else limit
        worker.started = worker.since = time.monotonic()
        send_cases(worker, message)

    @property
    def _open_limit(self) -> float:
        return max(self.load_timeout, START_TIMEOUT)

    def _load_seconds(self, worker: Worker) -> float:
        """Return the additional time in seconds for the first call of a worker, which may load a model."""
        if worker.num_calls or not self._loads:
            return 0.0
        if self._first_call is None:
            return 0.0 if self._load_failed else self.load_timeout
        return self.load_timeout if worker.is_new else min(3.0 * self._first_call, self.load_timeout)

    def _remaining(self, worker: Worker) -> float:
        limit = worker.limit + self._load_seconds(worker) if worker.ready else self._open_limit
        return worker.since + limit - time.monotonic()

    def _collect(self, results: dict[int, Verdict]) -> None:
        """Wait for the next message of a worker or for the next deadline.

        After the wait, all messages that have arrived and all deadlines that have passed are handled.
        """
        busy = [worker for worker in self._workers if worker.busy]
        if not busy:
            return
        remaining = min(_CHECK_SECONDS, *map(self._remaining, busy))
        readable = set(map(id, wait([worker.replies for worker in busy], max(remaining, 0.0))))
        for worker in busy:
            if id(worker.replies) in readable or not worker.process.is_alive():
                self._receive(worker, results)
            elif self._remaining(worker) <= 0:
                self._time_out(worker, results)

    def _receive(self, worker: Worker, results: dict[int, Verdict]) -> None:
        try:
            messages, closed = worker.reader.read()
            for message in messages:
                self._handle(worker, message, results)
        except BadMessageError as error:
            self._give_up(worker, results, f"the worker process did not send a verdict: {error}")
            return
        if not worker.busy:  # if the process has ended, the next round of _grade_all removes it
            return
        if closed or (not messages and not worker.process.is_alive()):
            wait([worker.process.sentinel], 1.0)
            place = where(worker.trace, None)
            worker.process.join(1.0)
            self._give_up(worker, results, ending(worker.process.exitcode) + place)

    def _handle(self, worker: Worker, message: Mapping[str, Any], results: dict[int, Verdict]) -> None:
        match message:
            case {"failed": str(reason)} if not worker.ready:
                raise SchoolError(f"the task {self._name} cannot be opened in a worker process: {reason}")
            case {"ready": True} if not worker.ready:
                worker.ready = True
            case {"case": int(at)} if 0 <= at < len(worker.sent) and worker.sent[at] in worker.open:
                verdict = verdict_of(message)
                self._keep_trace(verdict.reason, message)
                self._record(worker, [worker.sent[at]], verdict, results)
            case {"error": str(reason), "retry": bool(retry)} if worker.sent and reason:
                self._keep_trace(reason, message)
                self._end_call(worker)
                self._fail(worker, results, reason, retry=retry)
                worker.sent, worker.open = [], set()
            case {"done": True} if worker.sent and not worker.open:
                self._end_call(worker)
                worker.sent = []
            case _:
                raise BadMessageError(f"unexpected message {str(message)[:60]}")

    def _keep_trace(self, reason: str, message: Mapping[str, Any]) -> None:
        trace = message.get("trace")
        if isinstance(trace, str) and trace and len(self.traces) < 100:
            self.traces.setdefault(reason, trace)

    def _end_call(self, worker: Worker) -> None:
        if not worker.num_calls and worker.has_graded:
            self._first_call = max(self._first_call or 0.0, time.monotonic() - worker.started)
        worker.num_calls += 1

    def _record(self, worker: Worker, cases: Iterable[int], verdict: Verdict, results: dict[int, Verdict]) -> None:
        """Store the verdict of cases, and restart the timeout of the worker."""
        now = time.monotonic()
        for case in cases:
            results[case] = verdict
            self.seconds[case] = (now - worker.started) / (1 if self._together else len(worker.sent))
            worker.open.discard(case)
        self._num_graded += verdict.reward is not None
        worker.has_graded |= verdict.reward is not None
        worker.since = now

    def _time_out(self, worker: Worker, results: dict[int, Verdict]) -> None:
        load = self._load_seconds(worker)
        first = f" and {load:.3g} s more for the first call of the worker" if load >= 1 else ""
        number = f" for {len(worker.sent)} completions" if len(worker.sent) > 1 else ""
        limit = self._limit_of(len(worker.sent))
        place = where(worker.trace, worker.process.pid) if worker.ready else ""
        place = f"; the verifier was{place}" if place else ""
        self._load_failed |= load > 0 and self._first_call is None
        self._give_up(worker, results, f"no verdict{number} within {limit:g} s{first}{place}")

    def _give_up(self, worker: Worker, results: dict[int, Verdict], reason: str) -> None:
        """Kill a worker that grades or starts, and record the reason for its cases."""
        if not worker.ready:
            raise SchoolError(
                f"task {self._name} cannot be opened in a worker process (exit code {worker.process.exitcode}, "
                f"after {time.monotonic() - worker.since:.0f} s of at most {self._open_limit:g} s); if you run a "
                "script, put its code under `if __name__ == '__main__':`, because workers import the script"
            )
        self._num_lost += len(worker.sent) == 1
        self._last_reason = reason
        self._fail(worker, results, reason, retry=True)
        self._remove(worker)

    def _fail(self, worker: Worker, results: dict[int, Verdict], reason: str, *, retry: bool) -> None:
        """Record the reason of a failed call for its cases, or schedule each case to be graded alone."""
        alone = self._batch != "whole" or self._together
        if not (retry and alone and len(worker.sent) > 1):
            self._record(worker, sorted(worker.open), Verdict(None, reason), results)
            return
        self._waiting.extend([case] for case in sorted(worker.open))
        if not self._warned:
            self._warned = True
            print(
                f"school: a call of the verifier with {len(worker.sent)} completions failed ({reason}); each of its "
                "completions is graded alone",
                file=sys.stderr,
            )

    def _skip(self, results: dict[int, Verdict]) -> None:
        """Record a reason for all cases that were not sent to a worker yet."""
        reason = f"{self._last_reason} (not tried: {self._num_lost} completions before this one had no verdict)"
        for call in self._waiting:
            for case in call:
                results[case] = Verdict(None, reason)
        self._waiting.clear()
