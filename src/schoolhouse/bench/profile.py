"""How our cost grows and where our time goes: the curves and the breakdown of docs/performance.md."""

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
from schoolhouse.bench.benchmark import Contender
from schoolhouse.bench.workload import Work, asked, told, write
from schoolhouse.policy import generator
from schoolhouse.policy.policy import Policy

BASE = Work(problems=16, samples=16, prompt=(160, 160), answer=(128, 128))
CURVES = {  # what is varied: its values, and the work at each
    "samples of a problem (256 rollouts)": {g: replace(BASE, problems=256 // g, samples=g) for g in (1, 4, 16, 64)},
    "tokens of an answer (256 rollouts)": {n: replace(BASE, answer=(n, n)) for n in (32, 64, 128, 256, 512)},
    "rollouts (16 a problem)": {16 * p: replace(BASE, problems=p) for p in (1, 4, 16, 32)},
    "million parameters (256 rollouts)": {int(s[:-1]): replace(BASE, size=s) for s in ("1M", "3M", "10M", "30M")},
}


def curves(repeats: int = 2) -> dict[str, dict[int, float]]:
    """Sampled tokens per second of the better turn at each point of each curve."""
    return {name: {x: _speed(work, repeats) for x, work in points.items()} for name, points in CURVES.items()}


def _speed(work: Work, repeats: int) -> float:
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        write(work, Path(folder))
        contender = Contender("sampler_ours", Path(folder))
        try:
            contender.ready()
            turns = [contender.turn() for _ in range(repeats)]
        finally:
            contender.close()
    return max(turn["tokens"] / turn["seconds"] for turn in turns)


def breakdown(size: str, threads: int) -> dict[str, dict[str, float]]:
    """Seconds of the parts of sampling 256 answers and of one update on 64 rows."""
    torch.set_num_threads(threads)
    work = replace(BASE, size=size)
    with tempfile.TemporaryDirectory(prefix="school-bench-") as folder:
        write(work, Path(folder))
        policy = Policy.load(Path(folder) / "model")
    size_of_tokenizer = policy.conversation.tokenizer.vocab_size
    prefixes = asked(work.prompts(size_of_tokenizer), work.samples)
    rows = told(work.rows(size_of_tokenizer)[:64])
    batches = pack(rows, token_mean(rows), prompts=False)
    return {
        f"sampling, {size}": _sampling(policy, lambda: policy.extend(prefixes, work.answer[1], stop_ids=())),
        f"learning, {size}": _learning(lambda: policy.update(batches, negative_log_likelihood(), 1e-4)),
    }


def _sampling(policy: Policy, run: Callable[[], object]) -> dict[str, float]:
    """Timed from outside; the rest is norms, rotations, bookkeeping."""
    spent = {"matrix products": 0.0, "attention": 0.0, "choice of tokens": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            spent[part] += time.perf_counter() - start
            return result

        return call

    run()
    slots, sample = policy.slot_cache, generator.sample_each
    policy.slot_cache = type("Timed", (slots,), {"attend": timed("attention", slots.attend)})
    setattr(generator, "sample_each", timed("choice of tokens", sample))  # noqa: B010
    linear = [module for module in policy.decoder.modules() if isinstance(module, torch.nn.Linear)]
    for module in linear:
        setattr(module, "forward", timed("matrix products", module.forward))  # noqa: B010
    try:
        start = time.perf_counter()
        run()
        whole = time.perf_counter() - start
    finally:
        policy.slot_cache = slots
        setattr(generator, "sample_each", sample)  # noqa: B010
        for module in linear:
            del module.forward
    return {**spent, "the rest": whole - sum(spent.values())}


def _learning(run: Callable[[], object]) -> dict[str, float]:
    """By torch's profiler, seconds of the operations themselves."""
    run()
    with torch.profiler.profile() as profile:
        run()
    spent = {"matrix products": 0.0, "attention": 0.0, "choice of tokens": 0.0, "the rest": 0.0}
    parts = {"mm": "matrix products", "_Attention": "attention", "_ReadOut": "choice of tokens"}
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").removesuffix("Backward")
        spent[parts.get(name, "the rest")] += event.self_cpu_time_total / 1e6
    return spent
