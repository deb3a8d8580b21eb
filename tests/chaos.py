"""Kill runs at random times, resume them, and compare them with runs that were never stopped: the bits must be equal.

    python tests/chaos.py --kills 50 --seed 1

There are four pipelines with all stages. For each kill a pipeline is started in its own process, killed with SIGKILL
at a time that is uniform over its duration, resumed, and compared when it has finished: weights, metrics and rollouts
of every stage. Stops at the first difference and keeps both folders.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from schoolhouse.runs.atomic_io import list_checkpoints
from schoolhouse.runs.inspect import compare, is_run
from schoolhouse.runs.run import read_metrics

VERIFIER = """
from schoolhouse.tasks.base import Task
from schoolhouse.types import Message, Problem, Verdict

class Even(Task):
    def train_problems(self, step, count):
        return [self.problem(f"{step}-{i}", step + i) for i in range(count)]

    def eval_problems(self, count=None):
        return [self.problem(f"eval-{i}", i) for i in range(count or 4)]

    def problem(self, name, number):
        return Problem(name, (Message("user", f"Say {number}."),), str(number))

    def grade(self, problem, completion):
        length = len(completion.thought or "") + len(completion.answer)
        return Verdict(float(length % 2), parts={"length": float(length)})
"""

STAGE_NAMES = ("pretrain", "sft", "grpo")

PIPELINE = """
eval: {{task: "school:facts", problems: 4, samples: 2, max_new_tokens: 12}}
stages:
  - name: pretrain
    recipe: pretrain
    config:
      task: "school:facts"
      steps: 10
      save_every: 4
      eval_every: 5
      batch_size: 8
      seq_len: 48
      vocab_size: 300
      model: {{hidden_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 32, intermediate_size: 64}}
      model.max_seq_len: 128
      activation_checkpointing: {activation_checkpointing}
  - name: sft
    recipe: sft
    config:
      model: "stage:pretrain"
      task: "school:facts"
      steps: 14
      save_every: 5
      precision: {precision}
      lora.rank: {rank}
  - name: grpo
    recipe: grpo
    config:
      model: "stage:sft"
      task: "{task}"
      steps: 9
      save_every: 2
      prompts_per_step: 4
      group_size: 4
      sampling.max_new_tokens: 16
      precision: {precision}
      lora.rank: {rank}
      {options}
"""

SHAPES = {
    "plain": {
        "activation_checkpointing": "false",
        "precision": "auto",
        "task": "python:{even}",
        "options": ["eval.every: 4"],
    },
    "policy lag": {
        "activation_checkpointing": "true",
        "precision": "float32",
        "task": "python:{even}",
        "options": ["max_policy_lag: 2", "loss.kl_coef: 0.05", "loss.importance_correction: token"],
    },
    "minibatches": {
        "activation_checkpointing": "false",
        "precision": "exact",
        "task": "school:facts",
        "options": ["num_minibatches: 2", "dynamic_sampling: 1", "rewards.length: 0.1", "sampling.temperature: 1.5"],
    },
    "adapter": {
        "activation_checkpointing": "false",
        "precision": "auto",
        "task": "python:{even}",
        "options": ["loss.kl_coef: 0.05", "loss.ref_model_sync_steps: 3"],
        "rank": "4",
    },
}
"""Kinds of runs, by what is special about them. The tasks `python:` are graded by worker processes."""


def write_pipelines(folder: Path) -> dict[str, Path]:
    """A file for each shape."""
    (folder / "even.py").write_text(VERIFIER)
    files = {}
    for name, shape in SHAPES.items():
        task = str(shape["task"]).format(even=folder / "even.py")
        text = PIPELINE.format(**{"rank": "0", **shape, "task": task, "options": "\n      ".join(shape["options"])})
        files[name] = folder / f"{name.replace(' ', '-')}.yaml"
        files[name].write_text(text)
    return files


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "schoolhouse", "run", str(file), "--dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_start(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait until the first stage has begun; False if the process ended before."""
    while process.poll() is None:
        if (folder / STAGE_NAMES[0]).exists():
            return True
        time.sleep(0.002)
    return False


def finish(file: Path, folder: Path) -> float:
    """Start or resume a pipeline and wait for its end; gives the seconds since its first stage began."""
    process = start(file, folder)
    wait_for_start(process, folder)
    began = time.monotonic()
    _, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder} did not finish (exit code {process.returncode}):\n{stderr.decode()}")
    return time.monotonic() - began


def progress(folder: Path) -> str:
    """How far a killed pipeline got, from its files."""
    stages = [path for path in (folder / name for name in STAGE_NAMES) if is_run(path)]
    if not stages:
        return "before the first stage"
    stage = stages[-1]
    if list((stage / "checkpoints").glob("*.partial")):
        return f"{stage.name}, while a checkpoint was written or deleted"
    if (stage / "evaluation.json").exists():
        return f"{stage.name}, after its evaluation"
    metrics, checkpoints = read_metrics(stage), list_checkpoints(stage / "checkpoints")
    saved = int(checkpoints[-1].name) if checkpoints else 0
    return f"{stage.name}, {len(metrics)} steps recorded, {saved} saved"


def main(kills: int, seed: int) -> int:
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="school-chaos-"))
    files = write_pipelines(folder)
    uninterrupted, seconds = {}, {}
    for name, file in files.items():
        uninterrupted[name] = folder / f"{file.stem}-uninterrupted"
        seconds[name] = finish(file, uninterrupted[name])
        print(f"{name}: {seconds[name]:.1f} s without a kill", flush=True)
    killed = 0
    for kill in range(1, kills + 1):
        name = [*files][kill % len(files)]
        run, delay = folder / f"{files[name].stem}-{kill}", rng.uniform(0.0, seconds[name])
        process = start(files[name], run)
        if wait_for_start(process, run):
            time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finished = process.returncode != -signal.SIGKILL
        killed += not finished
        place = "finished before the kill" if finished else progress(run)
        finish(files[name], run)
        differing = compare(uninterrupted[name], run)
        line = f"kill {kill:3} of {kills}  {name:12}  at {delay:5.2f} s  {place}"
        print(f"{line}: {'the same bits' if not differing else 'DIFFERENT'}", flush=True)
        if differing:
            print("\n".join(differing) + f"\nboth are kept: {uninterrupted[name]} and {run}")
            return 1
        shutil.rmtree(run)
    print(f"{kills} of {kills} ended in identical bits ({killed} were killed, {kills - killed} had finished before)")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(main(options.kills, options.seed))
