"""Run this package and another library alternately, each in its own process, and compare their speeds.

The result has the median seconds of each library and the median ratio of the speeds.
"""

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

from schoolhouse.bench.backends.protocol import MARK
from schoolhouse.bench.limits import measure_limits
from schoolhouse.bench.workload import MODEL_SIZES, Workload, write_workload
from schoolhouse.config import suggest
from schoolhouse.model.device import pick_device, pick_dtype
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.manifest import environment
from schoolhouse.types import SchoolError

BACKENDS = Path(__file__).parent / "backends"
THIS_PACKAGE = "schoolhouse"

Report = Callable[[str], None]
"""A callback that receives a text about what the benchmark does now."""


def peers_by_kind() -> dict[str, list[str]]:
    """Map each kind of workload to the libraries that can run it. Each library has a file KIND_NAME.py."""
    peers: dict[str, list[str]] = {}
    for path in sorted(BACKENDS.glob("*_*.py")):
        kind, _, name = path.stem.partition("_")
        if name != THIS_PACKAGE and (BACKENDS / f"{kind}_{THIS_PACKAGE}.py").exists():
            peers.setdefault(kind, []).append(name)
    return peers


class Backend:
    """A process that runs the workload once for each request. `python` is the interpreter that runs the process."""

    def __init__(self, name: str, folder: Path, python: str = sys.executable) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, BACKENDS / f"{name}.py", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for the end of the first repeat, which is not measured. Raises SchoolError if the process ended."""
        self._receive()

    def repeat(self) -> dict[str, Any]:
        """Run one repeat and return its seconds, its peak memory in bytes, and other facts of the backend.

        Raises SchoolError if the process ended.
        """
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        log = self.log.read_text().strip().splitlines() or ["(nothing)"]
        status = self.process.wait()
        raise SchoolError(
            f"the process {self.name} ended early with exit status {status}; the last lines of its log are:\n"
            + "\n".join(log[-8:])
        )

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait()


def run_benchmark(kind: str, peer: str, size: str | None, options: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Run a benchmark in a temporary folder and return its result.

    The result includes the speed limits of this machine, which are measured right after the benchmark. Raises
    SchoolError for an unknown kind, peer (the other library) or size, and if a backend ends early.
    """
    peers = peers_by_kind()
    if kind not in peers:
        raise SchoolError(f"unknown workload `{kind}`{suggest(kind, sorted(peers))}")
    if peer not in peers[kind]:
        raise SchoolError(f"{kind} has no backend `{peer}`{suggest(peer, peers[kind])}")
    size = size or ("nanochat" if kind == "pretrain" else "3M")
    if size not in MODEL_SIZES:
        raise SchoolError(f"unknown size `{size}`{suggest(size, list(MODEL_SIZES))}")
    python = options["python"] or sys.executable
    if not shutil.which(python):
        raise SchoolError(f"--python {python} is not a program; give the path of a python whose environment has {peer}")
    search = _search_inputs(options) if kind == "search" else {}
    common = {key: options[key] for key in ("problems", "samples", "threads")}
    work = Workload(size, batch_size=32 if kind == "pretrain" else 64, **common)
    peer_options = {"dtype": peer_dtype(options["dtype"])}
    if options["source"]:
        peer_options["source"] = options["source"]
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        report("writing the workload")
        write_workload(work, Path(folder), {**peer_options, **search})
        result = run_repeats(Path(folder), kind, peer, options["repeats"], python, report)
    report("measuring the limits of this machine")
    limits = measure_limits(work.threads)
    return {
        **result,
        "work": {**asdict(work), **search},
        "peer_options": peer_options,
        "limits": limits._asdict(),
        "machine": environment(),
    }


def peer_dtype(name: str) -> str:
    """The number type of the other library. `auto` means bfloat16 if the processor supports it, otherwise float32."""
    return str(pick_dtype("auto", pick_device())).removeprefix("torch.") if name == "auto" else name


def run_repeats(
    folder: Path,
    kind: str,
    peer: str,
    repeats: int,
    python: str = sys.executable,
    report: Report = lambda stage: None,
) -> dict[str, Any]:
    """Run the backends of both libraries alternately, `repeats` times each.

    Returns the results of all repeats, the medians, and the ratio of the tokens/s in each pair of repeats.
    """
    backends: dict[str, Backend] = {}
    measured: dict[str, list[dict[str, Any]]] = {THIS_PACKAGE: [], peer: []}
    try:
        for name in measured:
            report(f"starting {name} with a first repeat that is not measured")
            backends[name] = Backend(f"{kind}_{name}", folder, sys.executable if name == THIS_PACKAGE else python)
            backends[name].wait_until_ready()
        for number in range(1, repeats + 1):
            for name, backend in backends.items():
                report(f"repeat {number} of {repeats}: {name}")
                measured[name].append(backend.repeat())
    finally:
        for backend in backends.values():
            backend.close()
    seconds = {name: [one["seconds"] for one in facts] for name, facts in measured.items()}
    rates = {name: [one["tokens"] / one["seconds"] for one in facts] for name, facts in measured.items()}
    ratios = [own / other for own, other in zip(rates[THIS_PACKAGE], rates[peer], strict=True)]
    return {
        "kind": kind,
        "peer": peer,
        "repeats": measured,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "peak_ratio": measured[THIS_PACKAGE][-1]["peak"] / measured[peer][-1]["peak"],
    }


def _search_inputs(options: Mapping[str, Any]) -> dict[str, str]:
    """The model, task and search of a search benchmark. Raises SchoolError if the model or the task is missing."""
    if not options["model"] or not options["task"]:
        raise SchoolError(
            "a search benchmark needs a model that was trained on a task; give --model FOLDER --task TASK"
        )
    return {
        "model": str(resolve_model(Path(options["model"])).resolve()),
        "task": options["task"],
        "search": options["search"],
    }


def result_table(result: Mapping[str, Any]) -> str:
    """The result as a table for the terminal."""
    lines = [f"{'':14}{'seconds':>10}{'tokens/s':>12}{'peak':>10}"]
    for name, repeats in result["repeats"].items():
        seconds, rate = result["median_seconds"][name], result["tokens_per_second"][name]
        lines.append(f"{name:14}{seconds:10.2f}{rate:12,.0f}{repeats[-1]['peak'] / 1e9:8.2f} GB")
    ratios = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"])
    limits = result["limits"]
    return "\n".join(
        [
            *lines,
            f"{THIS_PACKAGE}: {result['median_ratio']:.2f} times the tokens/s of {result['peer']} ({ratios}), "
            f"{result['peak_ratio']:.2f} times its memory",
            f"{result['peer']} ran in {result['peer_options']['dtype']}",
            f"this machine: {limits['bfloat16'] / 1e9:.0f} Gflop/s in bfloat16, {limits['float32'] / 1e9:.0f} in "
            f"float32, {limits['bandwidth'] / 1e9:.0f} GB/s from memory",
        ]
    )
