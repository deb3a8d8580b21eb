"""GRPO and its family: practice problems, groups of samples, each praised by how it compares with its siblings.

Shao et al. 2024, arXiv 2402.03300, eq. 3. Switches make the relatives (family.py, docs/recipes/grpo.md).
P problems a step, G rollouts a problem, T tokens of a rollout, N tokens of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from math import inf
from statistics import fmean
from typing import Any

from schoolhouse.controls import controlled
from schoolhouse.credit import (
    against_overlong,
    compares,
    group_advantage,
    judged,
    kl_in_reward,
    mean_parts,
    mixed,
    prefer_brief,
    rollouts_of,
    truncated,
    weaken,
    with_manners,
)
from schoolhouse.family import Config
from schoolhouse.measure.evaluate import evaluate
from schoolhouse.objectives import Objective, cispo, clipped_surrogate, corrected, kl_penalty, plus, ratio_stats
from schoolhouse.packing import pack, weigher, without
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.policy.stream import Stream
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import judge, open_task
from schoolhouse.text.manners import consistency, in_form
from schoolhouse.types import Group, Key, Rollout


def grpo(c: Config, run: Run) -> None:
    policy = Policy.load(run.start(c.model), c.precision, Adam(eps=c.adam_eps), c.recompute)
    reference = Policy.load(c.model, c.precision) if c.kl or c.kl_in_reward else None
    task, say = open_task(c.task, c.seed), policy.conversation
    run.reads(*task.files)
    objective = objective_of(c)

    def ask(step: int, more: int = 0) -> list[Rollout]:  # [P*G] prefixes
        problems = task.draw(step * (1 + c.dynamic_sampling) + more, c.problems)
        keyed = [(problem, more * c.problems + i) for i, problem in enumerate(problems)]
        keys = [(problem, Key(c.seed, "practice", step, i, g)) for problem, i in keyed for g in range(c.samples)]
        return [say.begin(problem, key) for problem, key in keys]

    def act(policy: Policy, prefixes: Sequence[Rollout]) -> list[Rollout]:  # [P*G] rollouts
        return policy.extend(prefixes, c.length, temperature=c.temperature, noise=c.sampler_noise)

    def manners(rollout: Rollout) -> dict[str, float]:
        return {"form": float(in_form(say, rollout)), "language": consistency(say.read(rollout).thought, c.language)}

    weights = {name: weight for name, weight in (("form", c.form), ("language", c.consistency)) if weight}
    policy.rehearse(max(map(len, ask(run.step))) + c.length, c.token_budget)
    stream = run.restore(Stream(policy, ask, act, c.lag, reference if c.renew_reference else None))

    for step, rollouts in run.steps(stream.over(range(run.step, c.steps)), keep=stream, every=c.save_every):
        if c.exam_every and step and step % c.exam_every == 0:  # of the policy as it is before this step
            began = time.monotonic()
            sat = evaluate(policy, task, c.exam_problems, c.exam_samples, c.length, c.temperature, c.seed)
            run.record(step, exam=sat.to_json())
            run.clock(exam=time.monotonic() - began)
        groups = judge(rollouts, task, say.read)
        for more in range(1, 1 + c.dynamic_sampling):
            if len(mixed(groups)) < c.problems:
                groups += judge(act(policy, ask(step, more)), task, say.read)
        run.clock(verdicts=task.pace)
        told = judged(controlled(c.control, groups, c.seed, step))
        if c.dynamic_sampling:  # a batch of groups that disagree and nothing else, in its denominators too
            told = mixed(told)[: c.problems]
        praised = with_manners(prefer_brief(told, c.brevity), manners, weights, c.guard_each, c.scale_ddof)
        praised = against_overlong(praised, c.length, c.overlong)
        if reference and c.renew_reference and step and step % c.renew_reference == 0:
            reference.decoder.load_state_dict(policy.decoder.state_dict())
        if c.kl_in_reward and reference:
            said = rollouts_of(praised)
            now, then = ([row.logprob.tolist() for row in p.score(said, c.temperature)] for p in (policy, reference))
            praised = kl_in_reward(praised, now, then, c.kl_in_reward)
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        stats = learn(c, policy, reference, objective, praised, rate)
        kept = {"manners": mean_parts(praised, weights)} if weights else {}
        run.record(step, groups, say.read, learning_rate=rate, **kept, **stats)


def objective_of(c: Config) -> Objective:
    """What the switches make of one token's loss."""
    fresh = c.updates == 1 and c.lag == 0
    if c.loss == "cispo":
        objective = cispo(c.clip_high, on_policy=fresh)
    else:
        objective = clipped_surrogate(c.clip_low, c.clip_high, c.level, c.clip_dual, on_policy=fresh)
    if c.correction != "none":
        objective = corrected(objective, c.correction, c.correction_cap, fresh, c.correction_mask)
    return plus(objective, c.kl, kl_penalty(c.kl_estimator)) if c.kl else objective


def learn(
    c: Config,
    policy: Policy,
    reference: Policy | None,
    objective: Objective,
    groups: list[Group],
    rate: float,
) -> dict[str, Any]:
    """`updates` optimizer steps on the groups that carry a signal; all of them are what a mean is taken over."""
    silent = compares(c.baseline) and not c.kl  # where siblings agree there is no gradient but that of a KL penalty
    signal = mixed(groups) if silent else groups
    rollouts, weigh = rollouts_of(signal), weigher(c.aggregate, rollouts_of(groups), c.constant or c.length)
    if c.mask_truncated:
        weigh = without(weigh, truncated(signal))
    if not any(weigh(rollout) for rollout in rollouts):
        return {}
    advantage = group_advantage(signal, c.baseline, c.scale, c.scale_guard, c.scale_ddof, scope=groups)
    rows: dict[str, Any] = {"advantage": weaken(advantage, c.negative), "sampled": [r.logprob for r in rollouts]}
    if c.lag and c.correction == "none":
        rows["old"] = rows["sampled"]
    elif c.lag or c.updates > 1:
        rows["old"] = [scored.logprob for scored in policy.score(rollouts, c.temperature)]
    if reference and c.kl:
        rows["reference"] = [scored.logprob for scored in reference.score(rollouts, c.temperature)]
    low, high = (inf, inf) if c.loss == "cispo" else (c.clip_low, c.clip_high)  # CISPO's clip removes no gradient
    watch = partial(ratio_stats, low=low, high=high, level=c.level) if "old" in rows else None
    place = [at for at, group in enumerate(signal) for _ in group.rollouts]
    parts = min(c.updates, len(signal))
    told = []
    for part in range(parts):  # whole groups, dealt in turn; weights x parts, so that each part is a mean of its own
        mine = [i for i, group in enumerate(place) if group % parts == part and weigh(rollouts[i])]
        if not mine:
            continue
        chosen: dict[str, Any] = {name: [row[i] for i in mine] for name, row in rows.items()}
        batches = pack(
            [rollouts[i] for i in mine],
            lambda rollout: weigh(rollout) * parts,
            c.token_budget,
            share=policy.shares,
            **chosen,
        )
        limit = inf if c.lag or told else c.gap_limit  # later the gap is what was learned
        told.append(policy.update(batches, objective, rate, c.clip_norm, c.temperature, limit, watch))
    return {name: fmean(stats[name] for stats in told) for name in told[0]} | {"gap": told[0]["gap"]}
