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
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from schoolhouse.bench.backends.protocol import MARK
from schoolhouse.bench.limits import measure_limits
from schoolhouse.bench.model_limits import describe_limits, measure_model_limits
from schoolhouse.bench.workload import MODEL_SIZES, Workload, write_workload
from schoolhouse.config import suggest
from schoolhouse.model.device import multiplies_bfloat16, pick_device, pick_dtype
from schoolhouse.runs.atomic_io import read_json, resolve_model
from schoolhouse.runs.manifest import environment
from schoolhouse.runs.progress import duration, phase
from schoolhouse.types import SchoolError

BACKENDS = Path(__file__).parent / "backends"
THIS_PACKAGE = "schoolhouse"
MODEL_KINDS = ("sampler", "learner", "grpo")

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
                start_new_session=True,  # Ctrl-C stops only this process, which keeps the results
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
    model = _real_model(kind, size, options)
    size = size or ("nanochat" if kind == "pretrain" else "3M")
    if size not in MODEL_SIZES:
        raise SchoolError(f"unknown size `{size}`{suggest(size, list(MODEL_SIZES))}")
    python = options["python"] or sys.executable
    if not shutil.which(python):
        raise SchoolError(f"--python {python} is not a program; give the path of a python whose environment has {peer}")
    search = _search_inputs(options) if kind == "search" else {}
    work = _workload(kind, size, model, options)
    dtype = peer_dtype(options["dtype"])
    peer_options = {"dtype": dtype}
    if options["source"]:
        peer_options["source"] = options["source"]
    own_options = {name: options[name] for name in ("lora_rank", "lora_alpha")} if options.get("lora_rank") else {}
    own_options |= {"weights": options["weights"]} if options.get("weights", "auto") != "auto" else {}
    with tempfile.TemporaryDirectory(prefix="school-bench-") as name:
        folder = Path(name)
        report("writing the workload")
        write_workload(work, folder, {**peer_options, **own_options, **search}, model)
        report(f"the other library computes in {dtype}{_reason(options['dtype'])}")
        result = run_repeats(folder, kind, peer, options["repeats"], python, report)
        result |= {
            "work": {**asdict(work), **search, **own_options, **({"model": str(options["model"])} if model else {})},
            "peer_options": peer_options,
            "machine": environment(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
        }
        with suppress(KeyboardInterrupt):  # the measured repeats are kept
            if not result.get("interrupted"):
                report("measuring the limits of this machine")
                with phase("measuring the limits of this machine"):
                    limits = measure_limits(work.threads)
                    result["limits"] = limits._asdict()
                    if kind == "sampler":
                        work_json = read_json(folder / "work.json")
                        model_limits = measure_model_limits(folder / "model", work_json, limits.bandwidth)
                        result["model_limits"] = model_limits._asdict()
    return result


def _workload(kind: str, size: str, model: Path | None, options: Mapping[str, Any]) -> Workload:
    """Return the workload that the command-line options describe. With `rows`, each problem has one answer, and all
    answers have the same length."""
    longest = options.get("max_new_tokens") or (128 if model else 256)
    shortest = min(16, longest)
    problems, samples = options["problems"], options["samples"]
    if rows := options.get("rows"):
        problems, samples, shortest = rows, 1, longest
    return Workload(
        model.name if model else size,
        problems,
        samples,
        completion_tokens=(shortest, longest),
        batch_size=32 if kind == "pretrain" else 64,
        threads=options["threads"],
    )


def _real_model(kind: str, size: str | None, options: Mapping[str, Any]) -> Path | None:
    """Return the folder of --model, or None for random weights. Raises SchoolError for options that do not fit
    together."""
    if options.get("weights", "auto") != "auto" and kind != "sampler":
        raise SchoolError(f"--weights does not work with `{kind}`: run `school bench sampler --against transformers`")
    if options.get("lora_rank") and kind != "grpo":
        raise SchoolError(f"--lora_rank does not work with `{kind}`: run `school bench grpo --against trl`")
    if not options.get("model") or kind == "search":
        return None
    if kind not in MODEL_KINDS:
        raise SchoolError(f"--model does not work with `{kind}`: leave it out, or run {', '.join(MODEL_KINDS)}")
    if size:
        raise SchoolError(f"--size {size} and --model {options['model']} cannot be combined: leave one of them out")
    model = resolve_model(Path(options["model"]))
    if not (model / "config.json").is_file():
        raise SchoolError(f"--model {options['model']} is not a model folder (no config.json): give another folder")
    return model


def _reason(dtype: str) -> str:
    if dtype != "auto":
        return ", as --dtype says"
    native = multiplies_bfloat16(pick_device())
    return f": this processor {'multiplies' if native else 'does not multiply'} bfloat16 natively"


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

    Returns the results of all repeats, the medians, and the ratio of the tokens/s in each pair of repeats. After
    Ctrl-C, the result has only the complete pairs, and the key `interrupted`. Raises KeyboardInterrupt if there is no
    complete pair.
    """
    backends: dict[str, Backend] = {}
    measured: dict[str, list[dict[str, Any]]] = {THIS_PACKAGE: [], peer: []}
    interrupted = False
    try:
        for name in measured:
            report(f"starting {name} with a first repeat that is not measured")
            with phase(f"{kind} against {peer}: start and first repeat of {name}, not measured"):
                backends[name] = Backend(f"{kind}_{name}", folder, sys.executable if name == THIS_PACKAGE else python)
                start = time.monotonic()
                backends[name].wait_until_ready()
            report(f"{name} is ready after {duration(time.monotonic() - start)}")
        for number in range(1, repeats + 1):
            for name, backend in backends.items():
                report(f"repeat {number} of {repeats}: {name}")
                with phase(f"{kind} against {peer}: repeat {number} of {repeats}, {name}"):
                    measured[name].append(backend.repeat())
            own, other = (facts[-1]["seconds"] for facts in measured.values())
            ratio = statistics.median(_ratios(measured, peer))
            report(f"repeat {number}: {THIS_PACKAGE} {own:.2f} s, {peer} {other:.2f} s; {ratio:.2f} times the tokens/s")
    except KeyboardInterrupt:
        interrupted = True
        if not measured[peer]:
            raise KeyboardInterrupt("stopped before the first pair of repeats was complete") from None
    finally:
        for backend in backends.values():
            backend.close()
    measured = {name: facts[: len(measured[peer])] for name, facts in measured.items()}
    seconds = {name: [one["seconds"] for one in facts] for name, facts in measured.items()}
    rates = {name: [one["tokens"] / one["seconds"] for one in facts] for name, facts in measured.items()}
    ratios = _ratios(measured, peer)
    return {
        **({"interrupted": True} if interrupted else {}),
        "kind": kind,
        "peer": peer,
        "repeats": measured,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "peak_ratio": measured[THIS_PACKAGE][-1]["peak"] / measured[peer][-1]["peak"],
    }


def _ratios(measured: Mapping[str, list[dict[str, Any]]], peer: str) -> list[float]:
    """The tokens/s of this package divided by the tokens/s of the other library, in each pair of repeats."""
    pairs = zip(measured[THIS_PACKAGE], measured[peer], strict=False)
    return [own["tokens"] / own["seconds"] * other["seconds"] / other["tokens"] for own, other in pairs]


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
    lines += [
        f"{THIS_PACKAGE}: {result['median_ratio']:.2f} times the tokens/s of {result['peer']} ({ratios}), "
        f"{result['peak_ratio']:.2f} times its memory",
        f"{result['peer']} ran in {result['peer_options']['dtype']}",
    ]
    if result.get("interrupted"):
        lines.append(f"stopped after {len(result['ratios'])} complete pairs of repeats")
    if limits := result.get("limits"):
        lines.append(
            f"this machine: {limits['bfloat16'] / 1e9:.0f} Gflop/s in bfloat16, {limits['float32'] / 1e9:.0f} in "
            f"float32, {limits['bandwidth'] / 1e9:.0f} GB/s from memory"
        )
    if model_limits := result.get("model_limits"):
        tokens = result["repeats"][THIS_PACKAGE][0]["tokens"]
        lines += describe_limits(model_limits, result["median_seconds"], tokens)
    return "\n".join(lines)
