"""Measure the maximum speed at which this machine can sample from a given model.

Every decode step multiplies the hidden states of R rows with all weight matrices. No sampler can be faster than the
matrix products with the weights alone. With few rows, no sampler can be faster than reading the weights from memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from schoolhouse.policy.policy import Policy

_GRID = 6  # numbers of rows that are measured; the times for other numbers of rows are interpolated
_MIN_SECONDS, _MIN_PASSES = 0.5, 3  # the minimum time and number of passes over all weights, for one number of rows
_PREFILL_ROWS = 512
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of one weight


class ModelLimits(NamedTuple):
    """The speed limits of sampling one workload with one model.

    dtype              the number type of the weights in the measured matrix products.
    stored             the number type in which the sampler stores the weights: `dtype`, or the value of --weights.
    rows               the largest number of rows of a decode step.
    flops              floating-point operations per second of the model's matrix products with `rows` rows.
    weight_bytes       bytes of all weight matrices as the sampler stores them.
    matmul_seconds     the time of all matrix products of the workload, including those of the prompts.
    memory_seconds     the time to read all weights once for each decode step, and the matrix products of the prompts.
    """

    dtype: str
    stored: str
    rows: int
    flops: float
    weight_bytes: int
    matmul_seconds: float
    memory_seconds: float


def measure_model_limits(folder: Path, work: Mapping[str, Any], bandwidth: float) -> ModelLimits:
    """Measure the limits for sampling the workload `work` (the content of work.json) with the model in `folder`.

    `bandwidth`: bytes per second when the machine reads from memory.
    """
    stored = work.get("weights", "auto")
    policy = Policy.load(folder, work.get("precision", "auto"))
    dtype = getattr(torch, stored) if stored in ("float32", "bfloat16") else policy.dtype
    weights = [module.weight for module in policy.decoder.modules() if isinstance(module, torch.nn.Linear)]
    weights = [weight.detach().to(dtype) for weight in weights]  # as autocast keeps them for a call of `extend`
    steps = rows_of_steps([length for group in work["lengths"] for length in group])
    prompt_tokens = sum(map(len, work["prompts"]))
    return _limits(weights, steps, prompt_tokens, bandwidth, _seconds_of_pass, stored)


def rows_of_steps(lengths: Sequence[int]) -> list[int]:
    """Return the number of rows of each decode step, if all answers start at the same time.

    The first token of an answer is computed together with the prompt, and the model never reads the last token.
    """
    return [sum(length > step for length in lengths) for step in range(1, max(lengths))]


def _limits(
    weights: Sequence[Tensor],
    steps: Sequence[int],
    prompt_tokens: int,
    bandwidth: float,
    seconds_of_pass: Callable[[Sequence[Tensor], int], float],
    stored: str = "auto",
) -> ModelLimits:
    most = max(steps, default=1)
    grid = sorted({max(1, round(most * part / _GRID)) for part in range(1, _GRID + 1)} | {1})
    seconds = [seconds_of_pass(weights, rows) for rows in grid]
    decoding = float(np.interp(steps, grid, seconds).sum())
    # the last matrix, the head of the decoder, is only needed for the last token of each prompt
    prefill = seconds_of_pass(weights[:-1], _PREFILL_ROWS) * prompt_tokens / _PREFILL_ROWS
    dtype = str(weights[0].dtype).removeprefix("torch.")
    stored = dtype if stored == "auto" else stored
    weight_bytes = _BYTES[stored] * sum(weight.numel() for weight in weights)
    return ModelLimits(
        dtype,
        stored,
        most,
        2 * sum(weight.numel() for weight in weights) * most / seconds[-1],
        weight_bytes,
        decoding + prefill,
        len(steps) * weight_bytes / bandwidth + prefill,
    )


def _seconds_of_pass(weights: Sequence[Tensor], rows: int) -> float:
    """The median time in which `rows` rows are multiplied with every matrix once, as in a decode step."""
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]).to(weight) for weight in weights}

    def once() -> float:
        start = time.perf_counter()
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)
        if weights[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        once()
        measured: list[float] = []
        while len(measured) < _MIN_PASSES or sum(measured) < _MIN_SECONDS:
            measured.append(once())
    return statistics.median(measured)


def describe_limits(limits: Mapping[str, Any], seconds: Mapping[str, float], tokens: int) -> list[str]:
    """Describe what fraction of each limit the libraries reach. `seconds`: the time of each library for the
    workload."""
    matmul, memory = limits["matmul_seconds"], limits["memory_seconds"]

    def reached(limit: float) -> str:
        return ", ".join(f"{name} {limit / spent:.0%}" for name, spent in seconds.items())

    return [
        f"matrix products of this model: {limits['flops'] / 1e9:,.0f} Gflop/s in {limits['dtype']} at {limits['rows']} "
        f"rows, so at most {tokens / matmul:,.0f} tokens/s for this workload; reached: {reached(matmul)}",
        f"reading the weights ({limits['weight_bytes'] / 1e9:.2f} GB in {limits['stored']}) once per step: at most "
        f"{tokens / memory:,.0f} tokens/s; reached: {reached(memory)}",
    ]
