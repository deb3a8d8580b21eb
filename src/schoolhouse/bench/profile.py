"""Measure the speed of larger workloads and the time of each part of a step, for the figure in docs/performance.md."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from schoolhouse.algorithms.losses import negative_log_likelihood
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.bench.benchmark import THIS_PACKAGE, Backend, Report
from schoolhouse.bench.workload import Workload, prompt_rollouts, row_rollouts, write_workload
from schoolhouse.policy import generator
from schoolhouse.policy.policy import Policy

BASE = Workload(problems=16, samples=16, prompt_tokens=(160, 160), completion_tokens=(128, 128))
CURVES = {  # what varies: its values, and the workload at each
    "samples of a problem (256 rollouts)": {g: replace(BASE, problems=256 // g, samples=g) for g in (1, 4, 16, 64)},
    "tokens of an answer (256 rollouts)": {n: replace(BASE, completion_tokens=(n, n)) for n in (32, 64, 128, 256, 512)},
    "rollouts (16 a problem)": {16 * p: replace(BASE, problems=p) for p in (1, 4, 16, 32)},
    "million parameters (256 rollouts)": {int(s[:-1]): replace(BASE, size=s) for s in ("1M", "3M", "10M", "30M")},
}
PARTS = ("matrix products", "attention", "token probabilities", "other")


def throughput_curves(report: Report, repeats: int = 2) -> dict[str, dict[int, float]]:
    """The sampled tokens/s at each point of each curve. Each point has the speed of its fastest repeat."""
    curves: dict[str, dict[int, float]] = {}
    for name, points in CURVES.items():
        for value, work in points.items():
            report(f"{name}: {value}")
            curves.setdefault(name, {})[value] = _throughput(work, repeats)
    return curves


def _throughput(work: Workload, repeats: int) -> float:
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        write_workload(work, Path(folder))
        backend = Backend(f"sampler_{THIS_PACKAGE}", Path(folder))
        try:
            backend.wait_until_ready()
            facts = [backend.repeat() for _ in range(repeats)]
        finally:
            backend.close()
    return max(one["tokens"] / one["seconds"] for one in facts)


def time_breakdown(size: str, threads: int, work: Workload = BASE) -> dict[str, dict[str, float]]:
    """The seconds of each part of sampling (all completions of the workload) and of one update (at most 64 rows)."""
    torch.set_num_threads(threads)
    work = replace(work, size=size)
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        write_workload(work, Path(folder))
        policy = Policy.load(Path(folder) / "model")
    vocab_size = policy.conversation.tokenizer.vocab_size
    prompts = prompt_rollouts(work.prompts(vocab_size), work.samples)
    rows = row_rollouts(work.rows(vocab_size)[:64])
    batches = pack(rows, token_mean(rows), prompts=False)
    max_new_tokens = work.completion_tokens[1]
    return {
        f"sampling, {size}": _time_sampling(policy, lambda: policy.extend(prompts, max_new_tokens, stop_ids=())),
        f"learning, {size}": _time_learning(lambda: policy.update(batches, negative_log_likelihood(), 1e-4)),
    }


def _time_sampling(policy: Policy, run: Callable[[], object]) -> dict[str, float]:
    """The seconds of each part of sampling, measured by timing the functions of each part.

    The part `other` contains norms, rotary embeddings and bookkeeping.
    """
    spent = dict.fromkeys(PARTS[:-1], 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            spent[part] += time.perf_counter() - start
            return result

        return call

    run()
    slot_cache, sample_each = policy.slot_cache, generator.sample_each
    policy.slot_cache = type("Timed", (slot_cache,), {"attend": timed("attention", slot_cache.attend)})
    setattr(generator, "sample_each", timed("token probabilities", sample_each))  # noqa: B010
    linear = [module for module in policy.decoder.modules() if isinstance(module, torch.nn.Linear)]
    for module in linear:
        setattr(module, "forward", timed("matrix products", module.forward))  # noqa: B010
    try:
        start = time.perf_counter()
        run()
        total = time.perf_counter() - start
    finally:
        policy.slot_cache = slot_cache
        setattr(generator, "sample_each", sample_each)  # noqa: B010
        for module in linear:
            del module.forward
    return {**spent, "other": total - sum(spent.values())}


def _time_learning(run: Callable[[], object]) -> dict[str, float]:
    """The seconds of each part of an update, measured by torch's profiler."""
    run()
    with torch.profiler.profile() as profile:
        run()
    spent = dict.fromkeys(PARTS, 0.0)
    parts = {"mm": "matrix products", "_Attention": "attention", "_LogProbs": "token probabilities"}
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").removesuffix("Backward")
        spent[parts.get(name, "other")] += event.self_cpu_time_total / 1e6
    return spent
