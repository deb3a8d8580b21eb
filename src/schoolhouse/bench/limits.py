"""What this machine could do at most: matrix products and memory, measured in the same minutes as the races."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from schoolhouse.policy.policy import pick_device


class Limits(NamedTuple):
    bfloat16: float
    """Floating-point operations per second of a large bfloat16 product."""
    float32: float
    bandwidth: float
    """Bytes per second that a large tensor is read at."""


def measure(threads: int, side: int = 2048, room: int = 1 << 28) -> Limits:
    """`side` of the matrices that are multiplied, `room` numbers of the tensor that is read (1 GiB)."""
    torch.set_num_threads(threads)
    device = pick_device()
    flops = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device, dtype=dtype)
        flops[dtype] = 2 * side**3 / _seconds(lambda a=a: a @ a)
    x = torch.ones(room, device=device)
    return Limits(flops[torch.bfloat16], flops[torch.float32], 4 * room / _seconds(lambda: x.sum()))


def _seconds(work: Callable[[], object], repeats: int = 9) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))
