"""The protocol of a backend: read the workload, print `ready`, run one repeat for each line of standard input.

This module imports nothing from schoolhouse, because some backends run in an environment without schoolhouse.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "@repeat "


def read_workload() -> tuple[Path, dict]:
    """Return the folder from the command line and its workload. Also sets the workload's number of threads."""
    folder = Path(sys.argv[1])
    work = json.loads((folder / "work.json").read_text())
    os.environ["OMP_NUM_THREADS"] = str(work["threads"])
    return folder, work


def send(**facts: object) -> None:
    print(MARK + json.dumps(facts), flush=True)


def serve_repeats(run: Callable[[], dict], warm_up: Callable[[], object] | None = None) -> None:
    """Call `warm_up` once, and then `run` once for each line of standard input. Only `run` is measured.

    By default, `warm_up` is `run`. `warm_up` can also be a shorter call that executes the same code. `run` returns
    facts such as {"tokens": 1000}. If a part of `run` should not be measured, `run` also returns the measured time as
    "seconds".
    """
    (warm_up or run)()
    send(ready=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        facts = run()
        # work on a GPU may still be running
        if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_available():
            cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        send(**{"seconds": seconds, "peak": peak, **facts})
