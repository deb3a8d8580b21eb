"""Execute and measure the first steps of a run in another process, in a temporary folder.

The process is stopped as soon as enough steps are done. During a trial, the progress is printed on stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from schoolhouse.config import BaseConfig, dump
from schoolhouse.runs.atomic_io import atomic_write, read_jsonl
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

_POLL_SECONDS, _LINE_SECONDS = 0.1, 10.0
_MIN_STEPS = 2  # the first step also loads the model


class Trial(NamedTuple):
    """The measurements of the first steps of a run.

    `times`: the lines of times.jsonl.
    `metrics`: the lines of metrics.jsonl.
    `peak_memory`: the peak memory of the process in bytes.
    `kept_memory`: the smallest memory of the process after its first step, in bytes: the weights, the state of the
        optimizer, and the program. `kept_memory` is 0 if the system does not report the memory of a process.
    `other_load`: the share of the machine's processors that other programs used, from 0 to 1. `other_load` is 0 if the
        system does not report it.
    """

    times: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    peak_memory: int
    kept_memory: int
    other_load: float = 0.0


def run_trial(
    recipe: str, config: BaseConfig, steps: int, seconds: float, report: Callable[[str], None], name: str
) -> Trial:
    """Execute up to `steps` steps of a run, and stop the run.

    The trial ends earlier if `seconds` have passed and two steps are done.

    `report`: a function that is called with each line about the progress.
    Raises SchoolError if the run fails before enough steps are done. On SIGTERM and SIGHUP, the trial ends too.
    """
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="school-estimate-") as folder:
        file, run, log = (Path(folder) / part for part in ("config.yaml", "run", "log.txt"))
        atomic_write(file, dump(config))
        command = [sys.executable, "-m", "schoolhouse", "--quiet", "train", recipe, str(file), "--dir", str(run)]
        before = processor_seconds()
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            kept, status, usage = _watch(process.pid, run / "times.jsonl", steps, seconds, report, name)
        except BaseException:
            _kill_group(process.pid)
            process.wait()
            raise
        process.returncode = status  # wait4 has read the status already
        times = read_jsonl(run / "times.jsonl")
        if len(times) < min(steps, _MIN_STEPS) and status:
            raise SchoolError(
                f"the first steps of the run failed{_exit_text(status)}:\n{log.read_text().strip()[-2000:]}"
            )
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        busy, total = (after - start for after, start in zip(processor_seconds(), before, strict=True))
        others = max(0.0, busy - usage.ru_utime - usage.ru_stime) / total if total else 0.0
        return Trial(times, read_jsonl(run / "metrics.jsonl"), peak, kept, others)


@contextmanager
def _ended_by_signals() -> Generator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that the process of the trial is ended too.

    The process has a session of its own, so it would continue after the terminal is closed. A signal that is ignored,
    as with nohup, stays ignored.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
        previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(
    pid: int, times: Path, steps: int, seconds: float, report: Callable[[str], None], name: str
) -> tuple[int, int, Any]:
    """Wait until enough steps are done or the process ends.

    Returns the smallest memory of the process after its first step, its exit status, and its resource usage.
    """
    start = last_line = time.monotonic()
    shown, kept = 0, 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        rows = read_jsonl(times) if times.exists() else []
        for row in rows[shown:]:
            report(f"{name}, step {row['step'] + 1} is done after {duration(row['seconds'])}{_parts(row)}")
            last_line = time.monotonic()
        shown = len(rows)
        if ended:
            return kept, os.waitstatus_to_exitcode(status), usage
        now, resident = time.monotonic(), resident_memory(pid)
        if shown and resident:
            kept = min(kept or resident, resident)
        if shown >= steps or (shown >= _MIN_STEPS and now - start > seconds):
            _kill_group(pid)
            return kept, 0, os.wait4(pid, 0)[2]
        if now - last_line >= _LINE_SECONDS:
            memory = f", {resident / 1e9:.2f} GB of memory" if resident else ""
            report(f"{name}, step {shown + 1} is running, {duration(now - start)} so far{memory}")
            last_line = now
        time.sleep(_POLL_SECONDS)


def resident_memory(pid: int) -> int:
    """Return the memory of a process in bytes, or 0 if the system does not report the memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def processor_seconds() -> tuple[float, float]:
    """Return two times since the start of the machine, added up over its processors, in seconds: the time in which they
    worked, and all time. Both are 0 if the system does not report the times."""
    try:
        ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), sum(ticks) / os.sysconf("SC_CLK_TCK")


def _kill_group(pid: int) -> None:
    """End a process and the processes that it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _parts(row: Mapping[str, Any]) -> str:
    parts = [f"{part} {row[part]:.1f} s" for part in ("sampling", "learning") if isinstance(row.get(part), float)]
    return f" ({', '.join(parts)})" if parts else ""


def _exit_text(status: int) -> str:
    if status == -signal.SIGKILL:
        return ", because the system ended its process (usually the memory was full)"
    return f" with exit code {status}"
