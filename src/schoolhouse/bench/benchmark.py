"""We and a peer in turn, each in its own process: medians of seconds, and of the ratio of tokens a second."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schoolhouse.bench.backends.turns import MARK
from schoolhouse.bench.limits import measure
from schoolhouse.bench.workload import SHAPES, Work, write
from schoolhouse.config import suggest
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.manifest import environment
from schoolhouse.types import SchoolError

HERE = Path(__file__).parent / "backends"
OURS = "ours"


def kinds() -> dict[str, list[str]]:
    """Kind of work -> peers there is a contender for; each is a file, KIND_PEER.py."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("*_*.py")):
        kind, _, name = path.stem.partition("_")
        if name != OURS:
            found.setdefault(kind, []).append(name)
    return found


class Contender:
    """A process that works once each time it is told to. `python` may be another environment's."""

    def __init__(self, name: str, folder: Path, python: str = sys.executable) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, HERE / f"{name}.py", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ready(self) -> None:
        self._answer()

    def turn(self) -> dict[str, Any]:
        """One repetition: seconds, peak (bytes) and what the contender says it did. Raises SchoolError if it died."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        words = self.log.read_text().strip().splitlines() or ["nothing"]
        raise SchoolError(
            f"{self.name} ended early (exit {self.process.wait()}); the last it said was:\n" + "\n".join(words[-8:])
        )

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait()


def bench(
    kind: str, peer: str, size: str | None, options: Mapping[str, Any], tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Race in a folder of its own; the result with this machine and its limits, measured right after it.

    Raises SchoolError for a kind or a peer that nobody wrote a contender for, and when a contender dies.
    """
    known = kinds()
    if kind not in known:
        raise SchoolError(f"there is no work `{kind}`{suggest(kind, sorted(known))}")
    if peer not in known[kind]:
        raise SchoolError(f"nobody runs {kind} against `{peer}`{suggest(peer, known[kind])}")
    size = size or ("nanochat" if kind == "pretrain" else "3M")
    if size not in SHAPES:
        raise SchoolError(f"there is no size `{size}`{suggest(size, list(SHAPES))}")
    taught = _taught(options) if kind == "search" else {}
    own = {key: options[key] for key in ("problems", "samples", "threads")}
    work = Work(size, batch=32 if kind == "pretrain" else 64, **own)
    for_peer = {key: options[key] for key in ("dtype", "source") if options[key]}
    python = options["python"] or sys.executable
    if not shutil.which(python):
        raise SchoolError(f"--python {python} is not a program: give the python of the environment that has {peer}")
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        write(work, Path(folder), {**for_peer, **taught})
        result = race(Path(folder), kind, peer, options["repeats"], python, tell)
    limits = measure(work.threads)
    return {
        **result,
        "work": {**asdict(work), **taught},
        "peer_options": for_peer,
        "limits": limits._asdict(),
        "on": environment(),
    }


def race(
    folder: Path,
    kind: str,
    peer: str,
    repeats: int,
    python: str = sys.executable,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """`repeats` turns of each; gives both lists of turns, medians, and how many times quicker we were each time."""
    field: dict[str, Contender] = {}
    turns: dict[str, list[dict[str, Any]]] = {OURS: [], peer: []}
    try:
        for name in turns:
            field[name] = Contender(f"{kind}_{name}", folder, sys.executable if name == OURS else python)
            field[name].ready()
        for done in range(repeats):
            for name, contender in field.items():
                turns[name].append(contender.turn())
            tell(done + 1, repeats)
    finally:
        for contender in field.values():
            contender.close()
    seconds = {name: [turn["seconds"] for turn in taken] for name, taken in turns.items()}
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in taken] for name, taken in turns.items()}
    ratios = [mine / theirs for mine, theirs in zip(rates[OURS], rates[peer], strict=True)]
    return {
        "kind": kind,
        "peer": peer,
        "turns": turns,
        "median_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "tokens_per_second": {name: statistics.median(taken) for name, taken in rates.items()},
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "peak_ratio": turns[OURS][-1]["peak"] / turns[peer][-1]["peak"],
    }


def _taught(options: Mapping[str, Any]) -> dict[str, str]:
    """The model, the task and the search of a race of searches. Raises SchoolError where one is missing."""
    if not options["model"] or not options["task"]:
        raise SchoolError("a search needs a model that was taught a task: give --model FOLDER --task TASK")
    return {
        "taught": str(resolve_model(Path(options["model"])).resolve()),
        "task": options["task"],
        "how": options["search"],
    }


def table(result: Mapping[str, Any]) -> str:
    """What a race says, for people."""
    lines = [f"{'':14}{'seconds':>10}{'tokens/s':>12}{'peak':>10}"]
    for name, turns in result["turns"].items():
        seconds, rate = result["median_seconds"][name], result["tokens_per_second"][name]
        lines.append(f"{name:14}{seconds:10.2f}{rate:12,.0f}{turns[-1]['peak'] / 1e9:8.2f} GB")
    each = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"])
    limits = result["limits"]
    return "\n".join(
        [
            *lines,
            f"ours is {result['median_ratio']:.2f} times as quick ({each}) in {result['peak_ratio']:.2f} of the memory",
            f"this machine: {limits['bfloat16'] / 1e9:.0f} Gflop/s in bfloat16, {limits['float32'] / 1e9:.0f} in "
            f"float32, {limits['bandwidth'] / 1e9:.0f} GB/s from memory",
        ]
    )
