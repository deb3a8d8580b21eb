"""Damage files at random and open them: each must be read, or refused with a SchoolError; nothing may crash.

    python tests/fuzz.py --minutes 60 --seed 1

Configs, data rows, chat templates, completions, model folders and run folders. In a valid one, some bytes are changed,
deleted or doubled. Prints the number of tries; stops at the first crash and keeps the files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schoolhouse.config import BaseConfig, load
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import grpo
from schoolhouse.runs.inspect import check, inspect
from schoolhouse.runs.run import Run
from schoolhouse.tasks.answer_match import answer_match
from schoolhouse.tasks.jsonl import open_jsonl
from schoolhouse.types import Completion, SchoolError

PIECES = [b"{", b"}", b"[", b"]", b'"', b":", b"\n", b"- ", b"&a ", b"*a", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf"]
PIECES += [b"null", b"nan", b"1e999", b"-1", b"9" * 40, b"{{", b"{%", b"%}", b"<answer>", b"\\boxed{", b"\\u0000"]
PIECES += [b"!!python/object"]


def damage(valid: bytes, rng: random.Random) -> bytes:
    """A few changes at random places."""
    damaged = bytearray(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, end = sorted(rng.randint(0, len(damaged)) for _ in range(2))
        match rng.randrange(6):
            case 0:
                damaged[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del damaged[at : min(end, at + rng.choice((1, 5, 50, 5000)))]
            case 2:
                damaged[at:at] = rng.choice(PIECES)
            case 3:
                damaged[at:at] = damaged[at : min(end, at + 200)]
            case 4:
                del damaged[at:]
            case 5 if damaged:
                damaged[min(at, len(damaged) - 1)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


class Steps(BaseConfig):
    steps: int = 3


class Weights:
    """A small state for a run to save."""

    def save(self, folder: Path) -> None:
        (folder / "weights").write_bytes(b"weights")

    def state_dict(self) -> dict:
        return {"number": 1}

    def load_state_dict(self, state: dict) -> None:
        pass


class Targets:
    """Each method opens one kind of damaged input in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = "the quick brown fox jumps over a lazy dog while 12 and 30 are 42 " * 20
        self.tokenizer = train_tokenizer([text], 300)
        conversation = Conversation(self.tokenizer)
        self.template = conversation.template.encode()
        Policy.create(ModelConfig(300, 16, 16, 1, 1, 1, 16, 64), conversation).save(folder / "valid-model")
        config = Steps()
        with Run.open(folder / "valid-run", config, "fuzz") as run:
            for step in run.steps(range(3), Weights(), every=1):
                run.record(step, loss=1.0 / (1 + step))

    def config(self, rng: random.Random) -> None:
        text = b"model: runs/sft\ntask: school:chain\nsteps: 20\noptimizer.learning_rate: 2e-4\n"
        text += b"advantage: {baseline: mean}\nmax_policy_lag: 0\n"
        path = self.folder / "config.yaml"
        path.write_bytes(damage(text, rng))
        load(grpo.Config, path, [])

    def rows(self, rng: random.Random) -> None:
        rows: list[dict[str, Any]] = [
            {"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(30)
        ]
        rows += [{"prompt": [{"role": "user", "content": "Say yes."}], "reference": "yes"}]
        path = self.folder / "rows.jsonl"
        path.write_bytes(damage("".join(json.dumps(row) + "\n" for row in rows).encode(), rng))
        task = open_jsonl(str(path))
        for problem in task.train_problems(0, 4):
            task.grade(problem, Completion(None, r"\boxed{4}")) if task.in_process else None

    def template_text(self, rng: random.Random) -> None:
        template = damage(self.template, rng).decode(errors="replace")
        Conversation(self.tokenizer, template)

    def completion(self, rng: random.Random) -> None:
        valid = rb"So we get \boxed{\frac{1}{2}} and <answer>1,234.5\text{ cm}^2</answer> or 50\%."
        text = damage(valid, rng).decode(errors="replace")
        for reference in ("12", r"\frac{1}{2}", r"50\%", "Paris", r"10\text{ cm}"):
            answer_match(Completion(None, text), reference)

    def model(self, rng: random.Random) -> None:
        folder = self._copy("valid-model")
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        path.write_bytes(damage(path.read_bytes(), rng)) if rng.random() < 0.95 else path.unlink()
        Policy.load(folder)

    def run(self, rng: random.Random) -> None:
        folder = self._copy("valid-run")
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        path.write_bytes(damage(path.read_bytes(), rng)) if rng.random() < 0.95 else path.unlink()
        if not check(folder):
            inspect(folder)
        with Run.open(folder, Steps(), "fuzz") as run:
            for step in run.steps(range(run.step, 3), run.restore(Weights()), every=1):
                run.record(step, loss=1.0)

    def _copy(self, name: str) -> Path:
        folder = self.folder / f"{name}-damaged"
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.folder / name, folder))


NAMES = ("config", "rows", "template_text", "completion", "model", "run")


def attempt(target: Callable[[random.Random], None], rng: random.Random) -> str:
    """Whether a damaged input was read or refused. Any other error is a crash, and raised."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            target(rng)
    except SchoolError:
        return "refused"
    return "read"


def main(minutes: float, seed: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="school-fuzz-"))
    targets, counts = Targets(folder), Counter()
    end, round_number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        round_number += 1
        for name in NAMES:
            case = f"{seed}-{round_number}-{name}"
            try:
                counts[name, attempt(getattr(targets, name), random.Random(case))] += 1
            except Exception as error:
                print(f"CRASH in {name}, case {case}: {type(error).__name__}: {error}\nthe files are in {folder}")
                raise
    for name in NAMES:
        refused, read = counts[name, "refused"], counts[name, "read"]
        print(f"{name:14} {refused:8,} refused with a reason, {read:8,} read")
    print(f"{sum(counts.values()):,} damaged files in {minutes:g} minutes, no crash (seed {seed})")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(main(options.minutes, options.seed))
