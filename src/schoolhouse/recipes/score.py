"""SCoRe: learn to correct oneself, by reinforcement over two attempts at the same problem.

Kumar et al. 2024, arXiv 2409.12917. An attempt, a fixed request to look again (which tells nothing), a second attempt.
Stage I praises the second attempt alone while a strong KL penalty holds the first to the model it started as: rewarded
at once, the two would become the same. Stage II praises both, and the second by what it changed: r2 + alpha (r2 - r1).
With first_stage 0 and alpha 0 it is plain reinforcement over two turns.

P problems a step, G rollouts a problem, T tokens of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import group_advantage, judged, rollouts_of, with_scores
from schoolhouse.measure.attempts import Attempts, first_attempts, twice
from schoolhouse.objectives import Objective, kl_penalty, policy_gradient
from schoolhouse.packing import Batch, Scores, pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.policy.stream import Stream
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import judge, open_task
from schoolhouse.types import LOOK_AGAIN, Group, Key, Precision, Rollout


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run. It should know what a second attempt is."""
    task: str = "school"
    seed: int = 0
    steps: int = Field(80, gt=0)
    first_stage: int = Field(40, ge=0)
    """Steps of stage I; the rest is stage II."""
    problems: int = Field(32, gt=0)
    samples: int = Field(16, gt=1)
    length: int = Field(128, gt=0)
    """Tokens of one attempt."""
    instruction: str = LOOK_AGAIN
    """What stands between the attempts. It tells nothing about whether the first was right."""
    temperature: float = Field(1.0, gt=0)
    alpha: float = Field(10.0, ge=0)
    """How much a change from wrong to right, or back, weighs in stage II."""
    kl: float = Field(0.01, ge=0)
    """beta1: KL penalty of all attempts."""
    kl_first: float = Field(0.1, ge=0)
    """beta2: that of the first attempt in stage I."""
    ahead: float = Field(0.0, ge=0, le=1)
    """How much of the second attempt's reward the first is praised for, in stage II (in stage I first attempts are
    held, never praised). The paper is silent; with any, a first attempt that leaves something to correct pays."""
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(5, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    adam_eps: float = Field(1e-8, gt=0)
    gap_limit: float = Field(0.1, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    save_every: int = Field(20, gt=0)


def score(c: Config, run: Run) -> None:
    policy = Policy.load(run.start(c.model), c.precision, Adam(eps=c.adam_eps))
    reference = Policy.load(c.model, c.precision)
    task, say = open_task(c.task, c.seed), policy.conversation
    run.reads(*task.files)

    def ask(step: int) -> list[Rollout]:  # [P*G] prefixes
        problems = task.draw(step, c.problems)
        keys = [(p, Key(c.seed, "practice", step, i, g)) for i, p in enumerate(problems) for g in range(c.samples)]
        return [say.begin(problem, key) for problem, key in keys]

    def act(policy: Policy, prefixes: Sequence[Rollout]) -> list[Rollout]:  # [P*G] rollouts of two turns
        return twice(policy, prefixes, c.length, c.temperature, c.instruction)

    stream = run.restore(Stream(policy, ask, act))
    for step, rollouts in run.steps(stream.over(range(run.step, c.steps)), keep=stream, every=c.save_every):
        second = judge(rollouts, task, say.read)
        first = judge(first_attempts(rollouts), task, say.read)
        run.record(step, second, say.read, **Attempts.of(first, second, say.read).to_json())
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup)
        run.record(step, learning_rate=rate, **learn(c, policy, reference, first, second, step < c.first_stage, rate))


def learn(
    c: Config, policy: Policy, reference: Policy, first: list[Group], second: list[Group], stage_one: bool, rate: float
) -> dict[str, Any]:
    """One update. Each attempt's tokens are praised for that attempt's reward, compared within the group."""
    early, late = map(judged, rewards(first, second, 0.0 if stage_one else c.alpha, c.ahead))
    rollouts = rollouts_of(late)
    if not rollouts:
        return {}
    start = [len(rollout) for rollout in rollouts_of(early)]  # of the second attempt, behind the first
    advantage = [
        [*(0.0 if stage_one else a for a in before), *after[at:]]
        for before, after, at in zip(
            group_advantage(early, scale="none"), group_advantage(late, scale="none"), start, strict=True
        )
    ]
    toll = [
        [c.kl_first if stage_one and t < at else c.kl for t in range(len(rollout))]
        for rollout, at in zip(rollouts, start, strict=True)
    ]
    batches = pack(
        rollouts,
        token_mean(rollouts),
        c.token_budget,
        share=policy.shares,
        advantage=advantage,
        toll=toll,
        sampled=[rollout.logprob for rollout in rollouts],
        reference=[scored.logprob for scored in reference.score(rollouts, c.temperature)],
    )
    return policy.update(batches, objective(), rate, c.clip_norm, c.temperature, c.gap_limit)


def rewards(
    first: Sequence[Group], second: Sequence[Group], alpha: float, ahead: float = 0.0
) -> tuple[list[Group], list[Group]]:
    """The groups of both attempts with what they are praised for: r1 + ahead r2', and r2' = r2 + alpha (r2 - r1).

    With alpha 10: wrong to wrong 0, wrong to right 11, right to right 1, right to wrong -10. None where either attempt
    could not be judged.
    """
    pairs = [
        (a.score, b.score)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.verdicts, other.verdicts, strict=True)
    ]
    late = [None if a is None or b is None else b + alpha * (b - a) for a, b in pairs]
    early = [None if a is None or then is None else a + ahead * then for (a, _), then in zip(pairs, late, strict=True)]
    return with_scores(first, early), with_scores(second, late)


def objective() -> Objective:
    """REINFORCE with a KL penalty whose coefficient is each token's own (column "toll")."""
    gradient, kl = policy_gradient(), kl_penalty("k3")

    def loss(batch: Batch, scores: Scores) -> Any:
        return gradient(batch, scores) + batch["toll"] * kl(batch, scores)

    return loss
