"""Measure the limits of this machine after a benchmark: the speeds of matrix multiplication and of memory reads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from schoolhouse.model.device import multiplies_bfloat16, pick_device


class Limits(NamedTuple):
    """The speed limits of a machine.

    bfloat16, float32  floating-point operations per second in a large matrix multiplication.
    bandwidth          bytes per second when the machine reads a large tensor.
    """

    bfloat16: float
    float32: float
    bandwidth: float


def measure_limits(threads: int, matrix_size: int = 2048, num_values: int = 1 << 28) -> Limits:
    """Measure how fast square matrices are multiplied and `num_values` float32 numbers (1 GiB) are added up.

    If the processor emulates bfloat16, the bfloat16 matrices are smaller.
    """
    torch.set_num_threads(threads)
    device = pick_device()
    flops = {}
    for dtype in (torch.bfloat16, torch.float32):
        emulated = dtype == torch.bfloat16 and not multiplies_bfloat16(device)
        size = matrix_size // 8 if emulated else matrix_size  # a large emulated product takes seconds
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        flops[dtype] = 2 * size**3 / _median_seconds(lambda m=matrix: m @ m)
    values = torch.ones(num_values, device=device)
    return Limits(flops[torch.bfloat16], flops[torch.float32], 4 * num_values / _median_seconds(values.sum))


def _median_seconds(run: Callable[[], object], repeats: int = 9) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))
