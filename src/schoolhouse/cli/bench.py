"""The command `school bench` compares schoolhouse with another library in speed and in memory use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field

from schoolhouse.cli.options import parse_options, take_option
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, to_json
from schoolhouse.runs.progress import is_quiet
from schoolhouse.types import SchoolError


class Bench(BaseConfig):
    kind: str
    """Workload: sampler, learner, grpo, pretrain, server, search. `kernels` compares each C kernel with torch.
    `profile` measures how the cost of this package grows with the workload, and how much time each part takes. `page`
    writes docs/performance.md from the files in the folder of --json."""
    against: str = ""
    """Library to compare with. The two libraries run alternately."""
    size: str | None = None
    """Model size: 1M, 3M, 10M, 30M, 100M; none: 3M (for pretrain: the size of nanochat's CPU configuration)."""
    repeats: int = Field(3, gt=0)
    problems: int = Field(32, gt=0)
    samples: int = Field(16, gt=0)
    """Completions for each problem."""
    threads: int = Field(2, gt=0)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number type of the other library. auto: bfloat16 if the processor multiplies it natively, else float32 (the same
    rule as in `school train`). Choose the faster type."""
    python: Path | None = None
    """Python program of the environment in which the other library is installed; none: the Python that runs now."""
    source: Path | None = None
    """Folder with the source of the other library, if the library runs from its source."""
    model: Path | None = None
    """For kinds `sampler`, `learner`, `grpo`: folder of a real model that both libraries load; none: random weights.
    For kind `search`: folder of a model that was trained on the task, or of its run."""
    rows: int | None = Field(None, gt=0)
    """Number of answers that are sampled together, each with its own prompt and --max_new_tokens tokens (1: as in a
    chat); none: --problems x --samples answers of different lengths."""
    max_new_tokens: int | None = Field(None, gt=1)
    """Tokens of the longest answer; none: 128 with --model, else 256. The shortest answer has 16 tokens."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """For kind `sampler`: number type of the weights that the sampler of schoolhouse reads; auto: the same type as in
    training."""
    lora_rank: int = Field(0, ge=0)
    """For kind `grpo`: both libraries train LoRA adapters of this rank (the other library uses the package peft)."""
    lora_alpha: float = Field(32.0, gt=0)
    task: str = ""
    """For kind `search`: the task, such as game24:PATH.csv."""
    search: str = "tot?thoughts=propose&samples=32&num_proposals=2&proposal_tokens=560&max_new_tokens=64"
    """For kind `search`: the search method. The other library gives --samples independent answers to each problem."""


def bench(args: Sequence[str]) -> None:
    """Run the command `school bench KIND --against PEER`."""
    file, args = take_option(args, "--json", "")
    usage = "school bench KIND --against PEER [--size 3M] [--repeats 3] [--json FILE]"
    c = parse_options(Bench, args, usage, ("kind",))
    if c is None:
        return
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the benchmark, because that can take an hour
    if find_spec("schoolhouse.bench") is None:
        raise SchoolError("the installed package has no benchmarks: run `school bench` from a checkout of the source")
    import torch

    from schoolhouse.bench.benchmark import peer_dtype, result_table, run_benchmark
    from schoolhouse.bench.kernels import kernel_table, run_kernels
    from schoolhouse.bench.page import write_page
    from schoolhouse.bench.profile import throughput_curves, time_breakdown

    if c.kind == "page":
        write_page(Path(file or "runs/bench"), Path("docs/performance.md"))
        return
    if c.kind == "profile":
        curves = throughput_curves(_report)
        breakdown: dict[str, dict[str, float]] = {}
        for size in ("3M", "30M"):
            _report(f"where the time goes: {size}")
            breakdown |= time_breakdown(size, c.threads)
        text = to_json({"curves": curves, "breakdown": breakdown}, 2)
        print(text)
        if file:
            atomic_write(Path(file), text + "\n")
        return
    if c.kind == "kernels":
        result = run_kernels(c.threads, 3 * c.repeats, getattr(torch, peer_dtype(c.dtype)), _report)
        print(kernel_table(result))
    else:
        result = run_benchmark(c.kind, c.against, c.size, c.model_dump(mode="json"), _report)
        print(result_table(result))
    if file:
        atomic_write(Path(file), to_json(result, 2) + "\n")
    if result.get("interrupted"):
        raise KeyboardInterrupt(f"stopped; the results of the complete repeats are {f'in {file}' if file else 'above'}")


def _report(stage: str) -> None:
    if not is_quiet():
        print(f"school bench: {stage}", file=sys.stderr, flush=True)
