"""Practice with a judge of steps beside the verdict on the answer: process advantages, and the form that gets hacked.

Setlur et al. 2024, arXiv 2410.08146 (PAV): a step is praised for its progress, by how much it changed the chance that
the answer will be right, on top of the outcome: every token of step i learns from A_outcome + alpha (v_i - v_{i-1}).
Progress telescopes: saying more good-looking steps earns nothing. Summing the judge's grades (`raw`) rewards every step
for itself, and a policy learns to say many (DeepSeek-R1 gave such rewards up: arXiv 2501.12948, section 4.2).

What a state is worth is what the grades of all steps so far make together (`aggregate`): the product, where the judge
says whether steps are right behind right ones, the last, where it grades states (`school train process_reward --labels
soft`). P problems, G rollouts of a problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import group_advantage, judged, progress, rollouts_of, step_advantage, with_scores
from schoolhouse.judges.marks import NO_STEPS, Aggregate, Judge, labels_of, running, same_tokens
from schoolhouse.objectives import clipped_surrogate
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.policy.stream import Stream
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import judge, open_task
from schoolhouse.text.steps import judged_ends
from schoolhouse.types import Group, Key, Precision, Rollout, SchoolError


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run."""
    judge: str
    """Folder of a judge of steps, or of the run that made it."""
    form: Literal["progress", "raw"] = "progress"
    """Praise a step for what it changed, or a rollout for the sum of its grades."""
    aggregate: Aggregate = "product"
    """progress: what grades so far make a state worth; product or min for a judge of steps, last for one of values."""
    alpha: float = Field(1.0, ge=0)
    """Weight beside the verdict on the answer; 0 is outcome rewards alone."""
    task: str = "school"
    seed: int = 0
    steps: int = Field(45, gt=0)
    problems: int = Field(32, gt=0)
    samples: int = Field(16, gt=1)
    length: int = Field(128, gt=0)
    temperature: float = Field(1.0, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(5, ge=0)
    decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    adam_eps: float = Field(1e-8, gt=0)
    gap_limit: float = Field(0.1, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    save_every: int = Field(20, gt=0)


def step_rewards(c: Config, run: Run) -> None:
    policy = Policy.load(run.start(c.model), c.precision, Adam(eps=c.adam_eps))
    task, say = open_task(c.task, c.seed), policy.conversation
    run.reads(*task.files)
    run.leans_on(c.judge)
    if (labels := labels_of(Path(c.judge))) in NO_STEPS:
        raise SchoolError(
            f"{c.judge}: a judge with labels `{labels}` grades no steps: give one with exact, strict or soft"
        )
    grader = Judge(Policy.load(c.judge, c.precision), task.delimiter)
    same_tokens(say, grader.policy.conversation, "the policy", f"the judge {c.judge}")

    def ask(step: int) -> list[Rollout]:  # [P*G] prefixes
        problems = task.draw(step, c.problems)
        keys = [(p, Key(c.seed, "practice", step, i, g)) for i, p in enumerate(problems) for g in range(c.samples)]
        return [say.begin(problem, key) for problem, key in keys]

    def act(policy: Policy, prefixes: Sequence[Rollout]) -> list[Rollout]:  # [P*G] rollouts
        return policy.extend(prefixes, c.length, temperature=c.temperature)

    stream = run.restore(Stream(policy, ask, act))
    for step, rollouts in run.steps(stream.over(range(run.step, c.steps)), keep=stream, every=c.save_every):
        groups = judge(rollouts, task, say.read)
        scored = judged(groups)
        said = rollouts_of(scored)
        grades = grader.grades(said)
        ends = [judged_ends(say, rollout, task.delimiter) for rollout in said]
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        batches = pack(
            said,
            token_mean(said),
            c.token_budget,
            share=policy.shares,
            advantage=advantages(c, scored, ends, grades),
            sampled=[rollout.logprob for rollout in said],
        )
        stats = policy.update(batches, clipped_surrogate(on_policy=True), rate, c.clip_norm, c.temperature, c.gap_limit)
        told = {"steps_said": fmean(map(len, ends)), "graded": fmean(sum(map(exp, few)) for few in grades)}
        run.record(step, groups, say.read, learning_rate=rate, **told, **stats)


def advantages(
    c: Config, groups: Sequence[Group], ends: Sequence[Sequence[int]], grades: Sequence[Sequence[float]]
) -> list[list[float]]:
    """A row [T] for each rollout; `grades` are the judge's log-probabilities, of the steps that end at `ends`."""
    if c.form == "raw":
        scores = [v.score for group in groups for v in group.verdicts]
        summed = [
            None if a is None else a + c.alpha * sum(map(exp, few)) for a, few in zip(scores, grades, strict=True)
        ]
        return group_advantage(with_scores(groups, summed), scale="none")
    start = [fmean(group.scores) for group in groups for _ in group.rollouts]  # what the problem itself is worth
    values = [running(logs, c.aggregate) for logs in grades]
    worth = [[c.alpha * more for more in progress(few, at)] for few, at in zip(values, start, strict=True)]
    outcome: list[Any] = group_advantage(groups, scale="none")
    steps = step_advantage(rollouts_of(groups), ends, worth)
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(outcome, steps, strict=True)]
