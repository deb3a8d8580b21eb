"""Supervised fine-tuning on worked examples: likelihood of what the teacher wrote, given what it was asked.

Only the reply carries loss (its end-of-turn token included); the mask comes from spans, never from string search.
"""

from __future__ import annotations

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import open_task
from schoolhouse.types import Key, Precision


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run: its newest checkpoint."""
    task: str = "school"
    """Where the worked examples come from: school[:families], jsonl:PATH, ..."""
    seed: int = 0
    steps: int = Field(500, gt=0)
    batch: int = Field(64, gt=0)
    """Worked examples per update."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=0)
    """Updates until the learning rate has risen to its peak."""
    decay: float = Field(0.5, ge=0, le=1)
    """Share of the run, at its end, over which the learning rate falls to zero."""
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    """Tokens of one micro-batch: memory, never the result."""
    precision: Precision = "auto"
    recompute: bool = False
    """Activation checkpointing: a second forward pass for less memory, the same result."""
    save_every: int = Field(200, gt=0)


def sft(c: Config, run: Run) -> None:
    policy = run.restore(Policy.load(run.start(c.model), c.precision, Adam(weight_decay=c.weight_decay), c.recompute))
    task = open_task(c.task, c.seed)
    run.reads(*task.files)

    for step in run.steps(range(run.step, c.steps), keep=policy, every=c.save_every):
        lessons = task.worked(step, c.batch)
        keys = [Key(c.seed, "sft", step, i) for i in range(len(lessons))]
        rollouts = policy.conversation.demonstrate_all(lessons, keys)
        batches = pack(rollouts, weigh=token_mean(rollouts), token_budget=c.token_budget)
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        stats = policy.update(batches, likelihood(), rate, c.clip_norm)
        run.record(step, **stats, learning_rate=rate)
