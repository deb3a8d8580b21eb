"""How many completions a second the worker processes grade: `python tests/grading_speed.py [COMPLETIONS]`.

A reward function waits for 5 ms, or computes for 5 ms. One worker or two workers grade the completions. Each worker has
graded one completion before the clock starts.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion

CODE = """
import asyncio, time

def waits(completion):
    time.sleep(0.005)
    return 1.0

def computes(completion):
    start = time.thread_time()
    while time.thread_time() - start < 0.005:
        pass
    return 1.0

async def waits_together(completion):
    await asyncio.sleep(0.005)
    return 1.0

def batch(completions, **columns):
    return [computes(completion) for completion in completions]

def nothing(completion):
    return 1.0
"""

FUNCTIONS = {
    "waits": "waits for 5 ms",
    "computes": "computes for 5 ms",
    "waits_together": "waits for 5 ms, `async def`",
    "batch": "computes for 5 ms each, whole batch",
    "batch&batch=split": "computes for 5 ms each, `batch=split`",
    "nothing": "returns at once",
}


def per_second(task: Task, num_completions: int, num_workers: int) -> float:
    """Completions a second of warm workers."""
    (problem,) = task.audit_problems(1)
    cases = [(problem, Completion(None, "x" * 200))] * num_completions
    with WorkerPool(task, num_workers, timeout=60.0) as pool:
        pool.grade_all(cases[: 4 * num_workers])
        started = time.perf_counter()
        verdicts = pool.grade_all(cases)
        seconds = time.perf_counter() - started
    assert all(verdict.reward == 1.0 for verdict in verdicts)
    return num_completions / seconds


def measure(folder: Path, num_completions: int) -> Iterator[str]:
    """The lines of a table: function, completions a second with one and with two workers, and their ratio."""
    (folder / "reward.py").write_text(CODE)
    (folder / "data.jsonl").write_text('{"prompt": "say x", "reference": "x"}\n')
    yield "| reward function | 1 worker | 2 workers | ratio |\n|---|---|---|---|"
    for name, label in FUNCTIONS.items():
        function, _, options = name.partition("&")
        options = f"&{options}" if options else ""
        task = open_task(f"python:{folder}/reward.py:{function}?data={folder}/data.jsonl&holdout=none{options}")
        one, two = (per_second(task, num_completions, workers) for workers in (1, 2))
        yield f"| {label} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for line in measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 512):
            print(line, flush=True)
