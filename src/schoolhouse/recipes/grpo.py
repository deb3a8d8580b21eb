"""GRPO and its family: practice problems, groups of samples, each praised by how it compares with its siblings.

Shao et al. 2024, arXiv 2402.03300, eq. 3. The switches make the relatives; docs/recipes/grpo.md has the table:
Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), DAPO (Yu et al. 2025, arXiv 2503.14476), RLOO (Ahmadian et al. 2024,
arXiv 2402.14740), REINFORCE (Williams 1992).
P problems a step, G rollouts a problem, T tokens of a rollout, N tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Literal

from pydantic import Field, model_validator

from schoolhouse.config import Frozen
from schoolhouse.credit import (
    Baseline,
    Scale,
    group_advantage,
    judged,
    mixed,
    prefer_brief,
    rollouts_of,
    truncated,
)
from schoolhouse.measure.evaluate import evaluate
from schoolhouse.objectives import Estimator, Level, Objective, clipped_surrogate, corrected, kl_penalty, plus
from schoolhouse.packing import Aggregate, pack, weigher, without
from schoolhouse.policy.policy import Adam, Policy, Precision
from schoolhouse.policy.stream import Stream
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import judge, open_task
from schoolhouse.types import Group, Key, Rollout

Correction = Literal["none", "token", "product"]
Alter = Callable[[int, list[Group]], list[Group]]


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run: its newest checkpoint."""
    task: str = "school"
    """Practice problems: school[:families], gym:NAME, jsonl:PATH, python:PATH."""
    seed: int = 0
    steps: int = Field(100, gt=0)
    problems: int = Field(32, gt=0)
    """P: problems of one step."""
    samples: int = Field(16, gt=1)
    """G: rollouts of one problem. At least 2, or nothing can be compared."""
    length: int = Field(128, gt=0)
    """Tokens a rollout may say."""
    temperature: float = Field(1.0, gt=0)

    baseline: Baseline = "mean"
    scale: Scale = "none"
    """What centred scores are divided by: GRPO and DAPO group_std, Dr. GRPO and RLOO none."""
    level: Level = "token"
    """Where the importance ratio lives: each token (GRPO), the sequence's mean (GSPO) or product."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    aggregate: Aggregate = "token_mean"
    """GRPO sequence_mean (1/|o|), DAPO token_mean, Dr. GRPO constant (1/length), RLOO sequence_sum."""
    kl: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty towards the starting model; 0 does without a second model."""
    kl_estimator: Estimator = "k3"
    brevity: float = Field(0.0, ge=0)
    """Among answers to one problem, prefer the shorter by this much of a score (Kimi k1.5); 0 leaves length alone."""
    mask_truncated: bool = False
    """Leave rollouts that were cut off out of the loss (they still count in the baseline)."""
    dynamic_sampling: int = Field(0, ge=0)
    """DAPO: ask up to this many further times in a step, until `problems` groups are mixed."""
    updates: int = Field(1, gt=0)
    """Optimizer steps on the rollouts of one step. 1 is on-policy: clipping then has nothing to clip."""
    lag: int = Field(0, ge=0)
    """Updates between sampling and training. 0 is on-policy."""

    correction: Correction = "none"
    """Weigh by how likely the learner finds what was sampled (truncated importance sampling), by token or sequence."""
    correction_cap: float = Field(2.0, gt=1)
    gap_limit: float = Field(0.1, gt=0)
    """Stop when sampled and learned log-probabilities of fresh rollouts lie further apart in the mean."""

    learning_rate: float = Field(2e-4, ge=0)
    warmup: int = Field(5, ge=0)
    decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    adam_eps: float = Field(1e-8, gt=0)
    """Adam divides by gradient size + this. As large as the noise in a weight's gradient, noise makes small steps."""
    token_budget: int = Field(4_096, gt=0)
    """Tokens of one micro-batch: memory, never the result."""
    precision: Precision = "auto"
    recompute: bool = False
    """Activation checkpointing: a second forward pass for less memory, the same result."""
    save_every: int = Field(20, gt=0)
    exam_every: int = Field(0, ge=0)
    """Sit the exam every so many steps (0: never)."""
    exam_problems: int = Field(100, gt=0)
    exam_samples: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.lag and self.dynamic_sampling:
            raise ValueError("dynamic_sampling asks again after the verdicts, which lag > 0 forbids: set one to 0")
        if self.baseline == "none" and self.scale != "none":
            raise ValueError(f"scale `{self.scale}` needs a baseline: set baseline to `mean`, or scale to `none`")
        if self.level != "token" and self.aggregate != "sequence_mean":
            raise ValueError(f"level `{self.level}` gives one ratio a sequence: set aggregate to `sequence_mean`")
        if self.correction != "none" and self.precision == "exact":
            raise ValueError("with precision `exact` there is nothing to correct: set correction to `none`")
        return self


def grpo(c: Config, run: Run, alter: Alter = lambda step, groups: groups) -> None:
    """Practise. `alter` may change verdicts before they become credit (the controls of docs/claims do)."""
    policy = Policy.load(run.start(c.model), c.precision, Adam(eps=c.adam_eps), c.recompute)
    reference = Policy.load(c.model, c.precision) if c.kl else None
    task, say = open_task(c.task, c.seed), policy.conversation
    run.reads(*task.files)
    objective = clipped_surrogate(c.clip_low, c.clip_high, c.level, on_policy=c.updates == 1 and c.lag == 0)
    if c.correction != "none":
        objective = corrected(objective, c.correction, c.correction_cap, on_policy=c.updates == 1 and c.lag == 0)
    if reference:
        objective = plus(objective, c.kl, kl_penalty(c.kl_estimator))

    def ask(step: int, more: int = 0) -> list[Rollout]:  # [P*G] prefixes
        problems = task.draw(step * (1 + c.dynamic_sampling) + more, c.problems)
        keyed = [(problem, more * c.problems + i) for i, problem in enumerate(problems)]
        keys = [(problem, Key(c.seed, "practice", step, i, g)) for problem, i in keyed for g in range(c.samples)]
        return [say.begin(problem, key) for problem, key in keys]

    def act(policy: Policy, prefixes: Sequence[Rollout]) -> list[Rollout]:  # [P*G] rollouts
        return policy.extend(prefixes, c.length, temperature=c.temperature)

    policy.rehearse(max(map(len, ask(run.step))) + c.length, c.token_budget)
    stream = run.restore(Stream(policy, ask, act, c.lag))

    for step, rollouts in run.steps(stream.over(range(run.step, c.steps)), keep=stream, every=c.save_every):
        if c.exam_every and step and step % c.exam_every == 0:  # of the policy as it is before this step
            sat = evaluate(policy, task, c.exam_problems, c.exam_samples, c.length, c.temperature, c.seed)
            run.record(step, exam=sat.to_json())
        groups = judge(rollouts, task, say.read)
        for more in range(1, 1 + c.dynamic_sampling):
            if len(mixed(groups)) < c.problems:
                groups += judge(act(policy, ask(step, more)), task, say.read)
        praised = judged(prefer_brief(alter(step, groups), c.brevity))
        signal = mixed(praised)  # where all agree there is no gradient
        if c.dynamic_sampling:  # a batch of mixed groups and nothing else, in its denominators too
            praised = signal = signal[: c.problems]
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        stats = learn(c, policy, reference, objective, signal, rollouts_of(praised), rate) if signal else {}
        run.record(step, groups, say.read, learning_rate=rate, **stats)


def learn(
    c: Config,
    policy: Policy,
    reference: Policy | None,
    objective: Objective,
    signal: list[Group],
    scope: list[Rollout],
    rate: float,
) -> dict[str, Any]:
    """`updates` optimizer steps on the groups that carry a signal; `scope` is what a mean is taken over."""
    rollouts, weigh = rollouts_of(signal), weigher(c.aggregate, scope, c.length)
    if c.mask_truncated:
        weigh = without(weigh, truncated(signal))
    if not any(weigh(rollout) for rollout in rollouts):
        return {}
    rows: dict[str, Any] = {
        "advantage": group_advantage(signal, c.baseline, c.scale),
        "sampled": [rollout.logprob for rollout in rollouts],
    }
    if c.lag:
        rows["old"] = rows["sampled"]
    elif c.updates > 1:
        rows["old"] = [scored.logprob for scored in policy.score(rollouts, c.temperature)]
    if reference:
        rows["reference"] = [scored.logprob for scored in reference.score(rollouts, c.temperature)]
    stats: dict[str, Any] = {}
    place = [at for at, group in enumerate(signal) for _ in group.rollouts]
    parts = min(c.updates, len(signal))
    for part in range(parts):  # whole groups, dealt in turn; weights x parts, so that each part is a mean of its own
        mine = [i for i, group in enumerate(place) if group % parts == part]
        chosen: dict[str, Any] = {name: [row[i] for i in mine] for name, row in rows.items()}
        batches = pack(
            [rollouts[i] for i in mine],
            lambda rollout: weigh(rollout) * parts,
            c.token_budget,
            share=policy.shares,
            **chosen,
        )
        fresh = c.lag == 0 and part == 0  # later the gap is what was learned
        stats = policy.update(batches, objective, rate, c.clip_norm, c.temperature, c.gap_limit if fresh else inf)
    return stats
