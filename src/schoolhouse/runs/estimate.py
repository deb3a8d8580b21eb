"""This file estimates the time and the memory of a run: it executes the first steps of the run and measures them."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from schoolhouse.config import BaseConfig, dump
from schoolhouse.runs.atomic_io import atomic_write, read_jsonl
from schoolhouse.runs.manifest import peak_memory_bytes
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

STEPS, LOOPS = 9, 2
"""The number of steps that are executed and measured. The first step counts as start-up time."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run. The numbers come from a trial, which executes the first steps of the run.

    `startup_seconds`: the time until the first step is done, in seconds.
    `step_seconds`: the time of one step in seconds: the median over the steps of the trial.
    `eval_seconds`: the total time of all evaluations, in seconds.
    `peak_memory`: the peak memory of the trial, in bytes. In reinforcement learning, a trial includes the largest
        micro-batch, because a run computes its largest micro-batch first.
    `step_growth`: the largest ratio between the time of a step and the time of the step before. `step_growth` is larger
        than 1 if each loop (a round of sampling and training) makes more updates than the loop before.
    """

    steps: int
    startup_seconds: float
    step_seconds: float
    eval_seconds: float
    peak_memory: int
    step_growth: float = 1.0

    @property
    def seconds(self) -> float:
        return (
            self.startup_seconds
            + self.step_seconds * sum(self.step_growth**later for later in range(self.steps - 1))
            + self.eval_seconds
        )

    def __str__(self) -> str:
        growth = f" at first, each at most {self.step_growth:g} times the one before" if self.step_growth > 1 else ""
        evals = f", {duration(self.eval_seconds)} of evaluation" if self.eval_seconds else ""
        return (
            f"{duration(self.seconds)} on this machine: {self.steps} steps of {self.step_seconds:.2f} s"
            f"{growth}{evals}\n"
            f"{self.peak_memory / 1e9:.2f} GB of memory at the peak\n"
            "if completions keep their present length; with longer completions, sampling and learning take longer"
        )


def estimate(recipe: str, config: BaseConfig) -> Estimate:
    """Execute the first steps of a run in another process, in a temporary folder.

    Raises SchoolError if one of the first steps fails.
    """
    name = next((name for name in ("steps", "loops") if name in type(config).model_fields), None)
    if name is None:
        raise SchoolError(f"cannot estimate the recipe `{recipe}`: its config has no key `steps` and no key `loops`")
    steps = int(getattr(config, name))
    trial = config.model_copy(update={name: min(STEPS if name == "steps" else LOOPS, steps)})
    with tempfile.TemporaryDirectory(prefix="school-estimate-") as folder:
        file, run = Path(folder) / "config.yaml", Path(folder) / "run"
        atomic_write(file, dump(trial))
        command = [sys.executable, "-m", "schoolhouse", "train", recipe, str(file), "--dir", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SchoolError(
                f"the first steps of the run failed with exit code {done.returncode}:\n{done.stderr.strip()[-2000:]}"
            )
        ends = [row["seconds"] for row in read_jsonl(run / "times.jsonl")]
    steps += len(ends) - int(getattr(trial, name))  # STaR begins with a loop 0
    peak = peak_memory_bytes(resource.RUSAGE_CHILDREN)
    step_seconds = statistics.median([after - before for before, after in pairwise(ends)] or ends)
    eval_seconds = _eval_steps(config, steps) * step_seconds
    return Estimate(steps, ends[0], step_seconds, eval_seconds, peak, getattr(config, "updates_growth", 1.0))


def _eval_steps(config: BaseConfig, steps: int) -> float:
    """Estimate the cost of all evaluations as a number of training steps.

    The estimate is the number of completions of all evaluations divided by the number of completions of one training
    step. The estimate is an upper bound of the time of the evaluations, because an evaluation includes no learning.
    """
    values = config.model_dump()
    settings = values.get("eval", {})
    if not settings.get("every"):
        return 0.0
    completions = settings["problems"] * settings["samples"]
    return (steps - 1) // settings["every"] * completions / (values["prompts_per_step"] * values["group_size"])
