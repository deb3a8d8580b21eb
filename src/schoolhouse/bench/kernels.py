"""Compare the speed of each C kernel with the speed of torch, in one process, on the sizes of common models.

Torch runs its fastest code for the same computation (model/kernel_cases.py). Sizes: heads of width 32 and
64, model widths of 256, 576 and 2,048, and vocabularies of 16,384, 49,152 and 151,936 tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from schoolhouse.model import kernel_cases, row_kernels
from schoolhouse.model.kernel_build import ANY_HEAD_DIM, count_lanes
from schoolhouse.model.kernel_cases import Case, Run
from schoolhouse.model.kernel_choice import uses_kernel
from schoolhouse.policy.sampling import sample_with_torch
from schoolhouse.runs.manifest import environment
from schoolhouse.types import SchoolError

_HEADS = {32: (4, 2), 64: (9, 3)}  # head width: query and key heads, as in a 3M model and in SmolLM2-135M
_WIDTHS = {256: 672, 576: 1536, 2048: 5632}  # model width: width of the SwiGLU
_VOCABULARIES = (16_384, 49_152, 151_936)
_SHORTEST_TIMING = 0.01  # seconds: shorter runs are repeated within one timing

Make = Callable[[], Case]


def run_kernels(threads: int, repeats: int, dtype: torch.dtype, report: Callable[[str], None]) -> dict[str, Any]:
    """Time each kernel and torch alternately, `repeats` times each.

    Returns one row for each kernel and size, and a description of the machine. The ratio of a row is the median of the
    seconds of torch divided by the seconds of the kernel. Raises SchoolError if there are no C kernels.
    """
    torch.set_num_threads(threads)
    lanes = count_lanes()
    if not lanes:
        raise SchoolError(
            "there are no C kernels to measure: install a C compiler (gcc or clang), and unset SCHOOLHOUSE_NATIVE=0"
        )
    rows = []
    for head_dim, make in _cases(dtype):
        case = make()
        report(f"{case.kernel}, {case.size}")
        rows.append(_measure(case, repeats, dtype) | {"used": _used(case, head_dim, dtype)})
    return {
        "kind": "kernels",
        "rows": rows,
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        "lanes": lanes,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "machine": environment(),
    }


def _cases(dtype: torch.dtype) -> Iterator[tuple[int, Make]]:
    """Yield the head width of each case and a function that makes the case. Some cases are large, so each case is made
    only when it is measured."""
    for head_dim, (heads, kv_heads) in _HEADS.items():
        shape = (heads, kv_heads, head_dim)
        for lengths in ([512] * 4, [2048], [160, 96, 380, 60, 128, 240]):
            yield head_dim, partial(kernel_cases.packed_attention, lengths, *shape)
        for slots in ((1, 1, 1024, 64), (32, 1, 160, 64), (8, 16, 160, 64)):
            yield head_dim, partial(kernel_cases.decode_attention, *slots, *shape, dtype)
        for n in (1, 2048):
            yield head_dim, partial(kernel_cases.rotary, n, heads, head_dim, dtype)
    for width, inner_width in _WIDTHS.items():
        for n in (1, 2048):
            yield ANY_HEAD_DIM, partial(kernel_cases.rms_norm, n, width, dtype)
        for n in (1, 512):
            yield ANY_HEAD_DIM, partial(kernel_cases.swiglu, n, inner_width, dtype)
    for vocabulary in _VOCABULARIES:
        yield ANY_HEAD_DIM, partial(kernel_cases.logprobs, 64, vocabulary, dtype)
        yield ANY_HEAD_DIM, partial(_sampling, 64, vocabulary, dtype)


def _sampling(rows: int, vocab: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(rows, vocab, generator=generator)).to(dtype)
    uniform = torch.rand(rows, dtype=torch.float64, generator=generator)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        return sample_with_torch(logits.float() / 0.8, uniform)

    return Case("sampling", f"{rows} x {vocab}", lambda: row_kernels.sample_kernel(logits, uniform, 0.8), plain)


def _used(case: Case, head_dim: int, dtype: torch.dtype) -> bool:
    kernel = "log-probabilities" if case.kernel == "sampling" else case.kernel
    return uses_kernel(kernel, head_dim, torch.float32 if kernel == "packed attention" else dtype)


def _measure(case: Case, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    case.native()
    start = time.perf_counter()
    case.torch()
    runs = max(1, int(_SHORTEST_TIMING / (time.perf_counter() - start)))
    pairs = [(_seconds(case.native, runs), _seconds(case.torch, runs)) for _ in range(repeats)]
    return {
        "kernel": case.kernel,
        "size": case.size,
        "milliseconds": 1e3 * statistics.median(native for native, _ in pairs),
        "torch_milliseconds": 1e3 * statistics.median(plain for _, plain in pairs),
        "ratio": statistics.median(plain / native for native, plain in pairs),
    }


def _seconds(run: Run, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def kernel_table(result: Mapping[str, Any]) -> str:
    """Format the result as a table for the terminal."""
    lines = [
        f"{row['kernel']:19}{row['size']:50}{row['milliseconds']:9.3f}{row['torch_milliseconds']:11.3f}"
        f"{row['ratio']:7.2f}  {'kernel' if row['used'] else 'torch'}"
        for row in result["rows"]
    ]
    slower = sum(row["ratio"] < 1.0 and row["used"] for row in result["rows"])
    return "\n".join(
        [
            f"{'kernel':19}{'size':50}{'ms':>9}{'torch, ms':>11}{'ratio':>7}  used",
            *lines,
            f"{slower} of {len(lines)} rows use a kernel that is slower than torch",
            f"{result['processor']}, {result['threads']} threads, {result['dtype']}; kernels with vectors of "
            f"{result['lanes']} floats, torch with {result['torch_instructions']}",
        ]
    )
