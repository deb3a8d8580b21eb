"""Kill runs at random instants, let them go on, and see that they end in the same bits as one that was never stopped.

    python tests/chaos.py --kills 50 --seed 1

Three pipelines, each with all stages; every kill is a process of its own that is started, killed with SIGKILL at an
instant drawn evenly over the time that the whole pipeline works, started again, and compared when it has finished:
weights, metrics and rollouts of every stage. Stops at the first difference and leaves both folders.
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
        return [self.problem(f"exam-{i}", i) for i in range(count or 4)]

    def problem(self, name, number):
        return Problem(name, (Message("user", f"Say {number}."),), str(number))

    def grade(self, problem, completion):
        said = len(completion.thought or "") + len(reply.answer)
        return Verdict(float(said % 2), parts={"length": float(said)})
"""

STAGES = """
exam: {{task: "school:facts", problems: 4, samples: 2, length: 12}}
stages:
  - name: textbook
    recipe: pretrain
    config:
      task: "school:facts"
      steps: 10
      save_every: 4
      test_every: 5
      batch: 8
      context: 48
      vocabulary: 300
      model: {{width: 64, layers: 2, heads: 2, key_heads: 1, head_dim: 32, inner: 64, longest: 128}}
      recompute: {recompute}
  - name: lessons
    recipe: sft
    config: {{model: "stage:textbook", task: "school:facts", steps: 14, save_every: 5, precision: {precision}}}
  - name: practice
    recipe: grpo
    config:
      model: "stage:lessons"
      task: "{task}"
      steps: 9
      save_every: 2
      problems: 4
      samples: 4
      length: 16
      precision: {precision}
      {switches}
"""

SHAPES = {
    "plain": {
        "activation_checkpointing": "false",
        "precision": "auto",
        "task": "python:{even}",
        "switches": "exam_every: 4",
    },
    "behind": {
        "activation_checkpointing": "true",
        "precision": "float32",
        "task": "python:{even}",
        "switches": "{lag: 2, kl: 0.05, correction: token}",
    },
    "many updates": {
        "activation_checkpointing": "false",
        "precision": "exact",
        "task": "school:facts",
        "switches": "{updates: 2, dynamic_sampling: 1, brevity: 0.1, temperature: 1.5}",
    },
}


def write(folder: Path) -> dict[str, Path]:
    """The pipelines, a file each."""
    (folder / "even.py").write_text(VERIFIER)
    files = {}
    for name, values in SHAPES.items():
        switches = values["switches"].strip("{}").replace(", ", "\n      ")
        told = {**values, "task": values["task"].format(even=folder / "even.py"), "switches": switches}
        files[name] = folder / f"{name.replace(' ', '-')}.yaml"
        files[name].write_text(STAGES.format(**told))
    return files


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "schoolhouse", "run", str(file), "--dir", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def working(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait until the run has begun; False where the process ended before."""
    while process.poll() is None:
        if (folder / "textbook").exists():
            return True
        time.sleep(0.002)
    return False


def finish(file: Path, folder: Path) -> float:
    """Run (on) to the end; gives the seconds of work."""
    process = start(file, folder)
    working(process, folder)
    began = time.monotonic()
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder} did not finish (exit code {process.returncode}):\n{said.decode()}")
    return time.monotonic() - began


def state(folder: Path) -> str:
    """Where a killed run stood, from what it left behind."""
    stages = [path for path in (folder / name for name in ("textbook", "lessons", "practice")) if is_run(path)]
    if not stages:
        return "before the first stage"
    stage = stages[-1]
    if list((stage / "checkpoints").glob("*.partial")):
        return f"{stage.name}, while a checkpoint was written or removed"
    if (stage / "evaluation.json").exists():
        return f"{stage.name}, after its exam"
    metrics, saved = read_metrics(stage), list_checkpoints(stage / "checkpoints")
    return f"{stage.name}, {len(metrics)} steps recorded, {int(saved[-1].name) if saved else 0} saved"


def main(kills: int, seed: int) -> int:
    draw, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="school-chaos-"))
    files = write(folder)
    whole, seconds = {}, {}
    for name, file in files.items():
        whole[name] = folder / f"{file.stem}-whole"
        seconds[name] = finish(file, whole[name])
        print(f"{name}: {seconds[name]:.1f} s when nothing stops it", flush=True)
    hit = 0
    for kill in range(1, kills + 1):
        name = [*files][kill % len(files)]
        mine, instant = folder / f"{files[name].stem}-{kill}", draw.uniform(0.0, seconds[name])
        process = start(files[name], mine)
        if working(process, mine):
            time.sleep(instant)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended = process.returncode != -signal.SIGKILL
        hit += not ended
        where = "it had finished just before" if ended else state(mine)
        finish(files[name], mine)
        differing = compare(whole[name], mine)
        told = f"kill {kill:3} of {kills}  {name:12}  at {instant:5.2f} s  {where}"
        print(f"{told}: {'the same bits' if not differing else 'DIFFERENT'}", flush=True)
        if differing:
            print("\n".join(differing) + f"\nboth are kept: {whole[name]} and {mine}")
            return 1
        shutil.rmtree(mine)
    print(f"{kills} of {kills} ended in identical bits ({hit} were killed at work, {kills - hit} had just finished)")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(main(options.kills, options.seed))
