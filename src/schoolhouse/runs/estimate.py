"""How much time and memory a run will take, from its own first steps: nothing is modelled that can be measured."""

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
"""Of the trial. The first is not counted as a step: it starts everything up."""


@dataclass(frozen=True)
class Estimate:
    """What a run of `steps` costs.

    start         seconds until the first step is done
    step          seconds of a step, the median of the trial's
    exams         seconds of all exams on the way
    memory        bytes at the peak of the trial; practice begins with its heaviest micro-batch
    growth        a step is at most so many times as long as the one before (loops whose updates grow)
    """

    steps: int
    startup_seconds: float
    step_seconds: float
    eval_seconds: float
    peak_memory: int
    step_growth: float = 1.0

    @property
    def seconds(self) -> float:
        return self.startup_seconds + self.step_seconds * sum(self.step_growth**later for later in range(self.steps - 1)) + self.eval_seconds

    def __str__(self) -> str:
        grow = f" at first, each at most {self.step_growth:g} times the one before" if self.step_growth > 1 else ""
        exams = f", {duration(self.eval_seconds)} of exams" if self.eval_seconds else ""
        return (
            f"{duration(self.seconds)} on this machine: {self.steps} steps of {self.step_seconds:.2f} s{grow}{exams}\n"
            f"{self.peak_memory / 1e9:.2f} GB of memory at the peak\n"
            "as long as answers stay as long as they are now: sampling and learning grow with them"
        )


def estimate(recipe: str, config: BaseConfig) -> Estimate:
    """Run the first steps in a process and a folder of their own, which are thrown away.

    Raises SchoolError if they fail.
    """
    name = next((name for name in ("steps", "loops") if name in type(config).model_fields), None)
    if name is None:
        raise SchoolError(f"{recipe} has neither steps nor loops to estimate")
    steps = int(getattr(config, name))
    trial = config.model_copy(update={name: min(STEPS if name == "steps" else LOOPS, steps)})
    with tempfile.TemporaryDirectory(prefix="school-estimate-") as folder:
        file, run = Path(folder) / "config.yaml", Path(folder) / "run"
        atomic_write(file, dump(trial))
        words = [sys.executable, "-m", "schoolhouse", "train", recipe, str(file), "--dir", str(run)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SchoolError(f"the first steps failed (exit {done.returncode}):\n{done.stderr.strip()[-2000:]}")
        ends = [row["seconds"] for row in read_jsonl(run / "times.jsonl")]
    steps += len(ends) - int(getattr(trial, name))  # STaR begins with a loop that is not counted
    peak = peak_memory_bytes(resource.RUSAGE_CHILDREN)
    took = [after - before for before, after in pairwise(ends)] or ends
    step = statistics.median(took)
    return Estimate(steps, ends[0], step, _eval_steps(config, steps) * step, peak, getattr(config, "updates_growth", 1.0))


def _eval_steps(config: BaseConfig, steps: int) -> float:
    """How many steps' worth of answers the exams on the way take (an upper bound: nobody learns in an exam)."""
    c = config.model_dump()
    settings = c.get("eval", {})
    if not settings.get("every"):
        return 0.0
    answers = settings["problems"] * settings["samples"] / (c["prompts_per_step"] * c["group_size"])
    return (steps - 1) // settings["every"] * answers
