"""Estimate the time and the memory of a run by executing and measuring its first steps.

A step of a large model can take minutes. So for a large model, a first trial executes small steps: fewer problems or
rows, and smaller micro-batches. If a whole step takes less than `WHOLE_SECONDS`, a second trial executes whole steps.
Otherwise the second trial executes steps of about `WHOLE_SECONDS`. The time of each part of a step and the peak memory
grow linearly with these sizes, plus a constant. The two trials give the slope and the constant.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from schoolhouse.algorithms.advantages import uses_group_baseline
from schoolhouse.config import BaseConfig
from schoolhouse.runs.progress import duration
from schoolhouse.runs.trial import Trial, run_trial
from schoolhouse.types import SchoolError

STEPS, LOOPS = 9, 2
"""The number of steps that are executed and measured. The first step counts as start-up time."""

SECONDS = 60.0
"""The time limit of a trial in seconds. A trial always executes at least two steps, even if they take longer."""

FIRST_SECONDS, SECOND_SECONDS = 15.0, 45.0
"""The same for the two trials of a large model."""

WHOLE_SECONDS = 40.0
"""The longest step of a large model that is measured, in seconds."""

OTHER_LOAD = 0.1
"""If other programs use a larger share of the processors during a trial, the estimate says so."""

LARGE = 100_000_000
"""If the weight files have at least this size in bytes, smaller steps are measured."""

_SIZES = ("prompts_per_step", "batch_size")  # the keys that say how large a step is
_SMALL_TOKENS = (1_024, 2_048)  # micro-batches of small steps: logits are in chunks from 1,024 tokens on
_SMALL_ROLLOUTS, _SMALL_ROWS = (16, 64), (8, 16)  # the sizes of the first trial, and the least of the second


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run. The numbers come from trials, which execute the first steps of the run.

    `startup_seconds`: the time until the first step is done, in seconds.
    `step_seconds`: the time of one step in seconds.
    `eval_seconds`: the total time of all evaluations, in seconds.
    `peak_memory`: the peak memory in bytes. In reinforcement learning, the peak includes the largest micro-batch,
        because a run tries its largest micro-batch first.
    `step_growth`: the largest ratio between the time of a step and the time of the step before. `step_growth` is larger
        than 1 if each loop (a round of sampling and training) makes more updates than the loop before.
    `longest_step`: the time of a step in seconds if every group of rollouts gives a training signal; 0 if the trials
        did not measure this time.
    `other_load`: the share of the processors that other programs used during the trials.
    """

    steps: int
    startup_seconds: float
    step_seconds: float
    eval_seconds: float
    peak_memory: int
    step_growth: float = 1.0
    longest_step: float = 0.0
    other_load: float = 0.0

    @property
    def seconds(self) -> float:
        return (
            self.startup_seconds
            + self.step_seconds * sum(self.step_growth**later for later in range(self.steps - 1))
            + self.eval_seconds
        )

    def __str__(self) -> str:
        growth = f" at first, each at most {self.step_growth:g} times the one before" if self.step_growth > 1 else ""
        if self.longest_step > 1.05 * self.step_seconds:
            growth += f" (up to {self.longest_step:.2f} s if every group gives a training signal)"
        evals = f", {duration(self.eval_seconds)} of evaluation" if self.eval_seconds else ""
        busy = f"\nother programs used {self.other_load:.0%} of the processors meanwhile: alone, the run is quicker"
        return (
            f"{duration(self.seconds)} on this machine: {self.steps} steps of {self.step_seconds:.2f} s"
            f"{growth}{evals}\n"
            f"{self.peak_memory / 1e9:.2f} GB of memory at the peak\n"
            "if completions keep their present length; with longer completions, sampling and learning take longer"
            f"{busy if self.other_load > OTHER_LOAD else ''}"
        )


def _print_line(line: str) -> None:
    print(f"estimate: {line}", file=sys.stderr, flush=True)


def estimate(recipe: str, config: BaseConfig, report: Callable[[str], None] = _print_line) -> Estimate:
    """Execute the first steps of a run in another process, in a temporary folder.

    `report`: a function that is called with each line about the progress; by default, the lines are printed to stderr.
    Raises SchoolError if one of the first steps fails.
    """
    name = next((name for name in ("steps", "loops") if name in type(config).model_fields), None)
    if name is None:
        raise SchoolError(f"cannot estimate the recipe `{recipe}`: its config has no key `steps` and no key `loops`")
    steps = int(getattr(config, name))
    size = next((key for key in _SIZES if key in type(config).model_fields), "") if name == "steps" else ""
    if size and _weight_bytes(config) >= LARGE:
        return _from_small_steps(recipe, config, steps, size, report)
    if star := Path(recipe).stem == "star":
        steps += 1  # STaR begins with a loop 0
    count = min(STEPS if name == "steps" else LOOPS + star, steps)
    report(f"measures up to {count} {name} of {steps} in a temporary folder, for at most about {duration(SECONDS)}")
    trial = run_trial(recipe, _without_saving(config), count, SECONDS, report, f"`{recipe}`")
    ends = [row["seconds"] for row in trial.times]
    step_seconds = statistics.median([after - before for before, after in pairwise(ends)] or ends)
    eval_seconds = _eval_steps(config, steps) * step_seconds
    growth = getattr(config, "updates_growth", 1.0)
    return Estimate(steps, ends[0], step_seconds, eval_seconds, trial.peak_memory, growth, other_load=trial.other_load)


class _Parts(NamedTuple):
    """The time of each part of a step, in seconds."""

    sampling: float
    learning: float
    rest: float


def _from_small_steps(recipe: str, config: BaseConfig, steps: int, key: str, report: Callable[[str], None]) -> Estimate:
    """Measure small steps and larger ones, and compute the time and the memory of a whole step from the two."""
    values = config.model_dump()
    whole, batch_tokens = int(values[key]), int(values["microbatch_tokens"])
    samples = int(values.get("group_size", 1)) if key == "prompts_per_step" else 1
    first, least = (
        min(whole, max(1, -(-rows // samples))) for rows in (_SMALL_ROLLOUTS if samples > 1 else _SMALL_ROWS)
    )
    sizes, tokens = [first if first < whole else max(1, whole // 2)], [min(_SMALL_TOKENS[0], batch_tokens)]

    def measure(seconds: float) -> Trial:
        text = f"`{key}` {sizes[-1]} instead of {whole}" if sizes[-1] < whole else f"`{key}` {whole}"
        report(f"the model is large: a trial measures steps with {text} and micro-batches of {tokens[-1]} tokens")
        small = _without_saving(config).model_copy(update={key: sizes[-1], "microbatch_tokens": tokens[-1]})
        rewards: Any = getattr(small, "rewards", None)
        if hasattr(rewards, "control"):  # with random rewards, every group gives a training signal
            small = small.model_copy(update={"rewards": rewards.model_copy(update={"control": "random"})})
        return run_trial(recipe, small, STEPS, seconds, report, f"`{key}` {sizes[-1]}")

    trials = [measure(FIRST_SECONDS)]
    expected = sum(_step_parts(trials[0])) * whole / sizes[0]
    sizes.append(whole if expected <= WHOLE_SECONDS else min(whole, max(least, int(whole * WHOLE_SECONDS / expected))))
    tokens.append(batch_tokens if sizes[1] == whole else min(_SMALL_TOKENS[1], batch_tokens))
    trials.append(measure(SECOND_SECONDS))
    parts = [_step_parts(trial) for trial in trials]
    full = _Parts(*(_line(sizes, column, whole) for column in zip(*parts, strict=True)))
    signal = _signal(trials) if _skips_constant_groups(config) else 1.0
    learning = _line(sizes, [one.learning for one in parts], whole * signal)
    step_seconds = full.sampling + learning + full.rest
    peak = trials[1].peak_memory if sizes[1] == whole else _peak_memory(config, trials, sizes, tokens, whole, samples)
    row = trials[1].times[0]
    load = row["seconds"] - sum(_row_parts(row)) - (0.0 if any(_row_parts(row)) else parts[1].rest)
    eval_seconds = _eval_completions(config, steps) / (whole * samples) * full.sampling if full.sampling else 0.0
    return Estimate(
        steps,
        max(0.0, load) + step_seconds,
        step_seconds,
        eval_seconds,
        peak,
        longest_step=sum(full) if signal < 1 else 0.0,
        other_load=max(trial.other_load for trial in trials),
    )


def _row_parts(row: Mapping[str, Any]) -> tuple[float, float]:
    return float(row.get("sampling", 0.0)), float(row.get("learning", 0.0))


def _step_parts(trial: Trial) -> _Parts:
    """Return the mean time of each part of a step. The first step is left out, because it is slower than the others."""
    rows = [
        (*_row_parts(row), row["seconds"] - before["seconds"] - sum(_row_parts(row)))
        for before, row in pairwise(trial.times)
    ] or [(*_row_parts(row), 0.0) for row in trial.times]
    return _Parts(*(max(0.0, statistics.fmean(column)) for column in zip(*rows, strict=True)))


def _line(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """Return the value at `size` of the straight line through two points. A falling line is replaced by a constant."""
    (x, _), (y, later) = sizes, values
    span = sizes[1] - x
    slope = max(0.0, later - y) / span if span else 0.0
    slope = min(slope, later / sizes[1])  # the constant part is not negative
    return max(0.0, later + slope * (size - sizes[1]))


def _skips_constant_groups(config: BaseConfig) -> bool:
    """Return whether a group with equal real rewards gives no training signal in this run."""
    values = config.model_dump()
    random_rewards = values.get("rewards", {}).get("control") == "random"
    by_group = uses_group_baseline(values.get("advantage", {}).get("baseline", "mean"))
    return by_group and not random_rewards and not values.get("loss", {}).get("kl_coef")


def _signal(trials: Sequence[Trial]) -> float:
    """Return the share of groups whose rewards differ, over all trials. Groups with equal rewards give no training
    signal."""
    rows = [row for trial in trials for row in trial.metrics if row.get("groups")]
    groups = sum(row["groups"] for row in rows)
    return sum(row.get("groups_with_signal", 0) for row in rows) / groups if groups else 1.0


def _peak_memory(
    config: BaseConfig,
    trials: Sequence[Trial],
    sizes: Sequence[int],
    tokens: Sequence[int],
    whole: int,
    samples: int,
) -> int:
    """Compute the peak memory of a whole step: the peak of learning or the peak of sampling, whichever is larger."""
    batch_tokens = config.model_dump()["microbatch_tokens"]
    read = [max((row.get("largest_microbatch", 0) for row in trial.metrics), default=0) for trial in trials]
    if not all(read):  # a run that samples tries its largest micro-batch before the first step
        read, each = list(tokens), batch_tokens
    else:
        each = max(largest / size for largest, size in zip(read, sizes, strict=True))
    largest = min(batch_tokens, whole * each)
    learning = _line(read, [trial.peak_memory for trial in trials], largest)
    completions = [row for row in trials[1].metrics if row.get("rollouts")]
    if samples == 1 or not completions:
        return int(learning)
    from schoolhouse.model.config import parse_model_config
    from schoolhouse.model.device import pick_device, pick_dtype
    from schoolhouse.model.folder import read_json
    from schoolhouse.model.kernel_choice import best_attention
    from schoolhouse.policy.sampling_memory import sampling_need

    try:
        decoder = parse_model_config(read_json(_base_folder(str(getattr(config, "model", ""))) / "config.json"))
    except SchoolError:  # the config of another library
        return int(learning)
    device = pick_device()
    slot_cache = best_attention(decoder.head_dim, pick_dtype(getattr(config, "precision", "auto"), device), device)[1]
    length = sum(row["sampled_tokens"] for row in completions) // sum(row["rollouts"] for row in completions)
    need = sampling_need(decoder, slot_cache, whole * samples, whole, 1, length)
    sampling = trials[1].kept_memory + need.total(min(512, whole * samples))
    return int(max(learning, sampling))


def _without_saving(config: BaseConfig) -> BaseConfig:
    """Return the config of a trial, which writes no checkpoint and makes no evaluation between its steps."""
    update: dict[str, Any] = {"save_every": 10**9} if "save_every" in type(config).model_fields else {}
    settings: Any = getattr(config, "eval", None)
    if hasattr(settings, "every"):
        update["eval"] = settings.model_copy(update={"every": 0})
    return config.model_copy(update=update)


def _weight_bytes(config: BaseConfig) -> int:
    """Return the size of the weights that a run starts from, or of the new weights of a pretraining, in bytes."""
    model = getattr(config, "model", None)
    if isinstance(model, str):
        return sum(file.stat().st_size for file in _weight_files(_base_folder(model)))
    sizes = model.model_dump() if isinstance(model, BaseConfig) else {}
    if "hidden_size" not in sizes:
        return 0
    attention = 2 * (sizes["num_heads"] + sizes["num_kv_heads"]) * sizes["head_dim"]
    layer = sizes["hidden_size"] * (attention + 3 * sizes["intermediate_size"])
    return 4 * (sizes["num_layers"] * layer + getattr(config, "vocab_size", 0) * sizes["hidden_size"])


def _base_folder(model: str) -> Path:
    """Return the folder of a model, or of the base model of an adapter."""
    from schoolhouse.runs.adapter_folder import base_folder
    from schoolhouse.runs.atomic_io import resolve_model

    return base_folder(resolve_model(model))


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")] if folder.is_dir() else []


def _eval_steps(config: BaseConfig, steps: int) -> float:
    """Estimate the cost of all evaluations as a number of training steps.

    The estimate is an upper bound for the time of the evaluations, because an evaluation includes no learning.
    """
    if not (completions := _eval_completions(config, steps)):
        return 0.0
    values = config.model_dump()
    return completions / (values["prompts_per_step"] * values["group_size"])


def _eval_completions(config: BaseConfig, steps: int) -> float:
    """Return the number of completions of all evaluations during a run."""
    settings = config.model_dump().get("eval", {})
    if not settings.get("every"):
        return 0.0
    return (steps - 1) // settings["every"] * settings["problems"] * settings["samples"]
