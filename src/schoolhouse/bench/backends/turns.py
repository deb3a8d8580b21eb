"""What all contenders share: read the work, say `ready`, run once for each line of standard input.

Stands alone: a peer may live in an environment of its own, where schoolhouse is not installed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "@turn "


def read_work() -> tuple[Path, dict]:
    """The folder named on the command line and its work; torch keeps to the number of threads that it names."""
    folder = Path(sys.argv[1])
    work = json.loads((folder / "work.json").read_text())
    os.environ["OMP_NUM_THREADS"] = str(work["threads"])
    return folder, work


def say(**facts: object) -> None:
    print(MARK + json.dumps(facts), flush=True)


def take_turns(run: Callable[[], dict]) -> None:
    """Run once unmeasured, then once for each line read.

    `run` gives what it did, such as {"tokens": 1000}, and its own "seconds" where part of it is not to be measured.
    """
    run()
    say(ready=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        done = run()
        # work that was handed to a GPU is not done yet
        if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_available():
            cuda.synchronize()
        seconds = time.perf_counter() - start
        say(**{"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **done})
