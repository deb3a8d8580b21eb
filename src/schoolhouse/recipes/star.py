"""STaR: think, keep the thoughts that led to a right answer, learn from them, begin again.

Zelikman et al. 2022, arXiv 2203.14465. What fails is tried once more with the answer as a hint (rationalization), and
learned as if there had been no hint. Every loop starts from the same base model, so that faults do not pile up.
With `samples` > 1, temperature 0.7 and no rationalization: expert iteration (ReST-EM, Singh et al. 2023, 2312.06585).

Where the paper prompts with a few worked examples, a small model cannot learn from its prompt: here they are part of
what each loop learns from (with a hint too, where failures get one), and loop 0 learns from them alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import rollouts_of, sampled_tokens
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Policy
from schoolhouse.randomness import python_random
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import judge, open_task
from schoolhouse.types import Demonstration, Group, Key, Precision, Problem, Rollout, SchoolError


class Config(Frozen):
    model: str
    """Folder of the base model, that every loop starts from (Hugging Face format), or of a run."""
    task: str = "school:addition?digits=1-5"
    """Problems with answers: the thoughts are to be found."""
    examples_task: str = "school:addition?digits=1-2&hands=full=100"
    """Where the few worked examples come from."""
    examples: int = Field(200, ge=0)
    seed: int = 0
    loops: int = Field(12, gt=0)
    problems: int = Field(512, gt=0)
    """Asked in each loop."""
    samples: int = Field(1, gt=0)
    """Answers to each problem. 1 is STaR, which is greedy; ReST-EM 32 or 64 at temperature 0.7."""
    temperature: float = Field(0.0, ge=0)
    length: int = Field(128, gt=0)
    """Tokens a rollout may say."""
    rationalize: bool = True
    """Try failed problems again with the answer as a hint."""
    cap: int = Field(10, gt=0)
    """Right answers kept of one problem, or easy ones take over."""
    restart: bool = True
    """Learn from the base model anew in each loop, not from where the last one ended."""
    keep: str = Field("right", pattern="^(right|all)$")
    """`all` learns from wrong answers too: an ablation, which must fail."""
    hint_stays: bool = False
    """Leave the hint in what is learned: an ablation, which must fail."""
    updates: int = Field(100, gt=0)
    """Of the first loop; the paper's grow by a fifth with each loop."""
    growth: float = Field(1.1, ge=1)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(10, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"


def star(c: Config, run: Run) -> None:
    if c.samples > 1 and not c.temperature:
        raise SchoolError("several samples at temperature 0 are one: set temperature above 0 (ReST-EM: 0.7)")
    policy = run.restore(Policy.load(run.start(c.model), c.precision))
    task, say = open_task(c.task, c.seed), policy.conversation
    shown = open_task(c.examples_task, c.seed)
    run.reads(*task.files, *shown.files)
    worked = shown.worked(0, c.examples)
    told = [replace(d, problem=hinted(d.problem)) for d in worked] if c.rationalize else []
    primer = _demonstrated(c, policy, [*worked, *told])

    def attempt(loop: int, problems: Sequence[Problem], purpose: str) -> list[Group]:
        keys = [(p, Key(c.seed, purpose, loop, i, g)) for i, p in enumerate(problems) for g in range(c.samples)]
        asked = [say.begin(problem, key) for problem, key in keys]
        return judge(policy.extend(asked, c.length, temperature=c.temperature), task, say.read)

    for loop in run.steps(range(run.step, 1 + c.loops), keep=policy, every=1, total=1 + c.loops):
        kept, groups, stats = list[Rollout](), list[Group](), dict[str, Any]()
        if loop:
            groups = attempt(loop, task.draw(loop, c.problems), "star")
            kept = keep(groups, c.cap, c.keep == "all")
            stats |= {"kept": len(kept)}
            failed = [group.problem for group in groups if group.scores and max(group.scores) < 1.0]
            if c.rationalize and failed:
                helped = attempt(loop, [hinted(problem) for problem in failed], "star hint")
                again, tokens = keep(helped, c.cap), sampled_tokens(rollouts_of([*groups, *helped]))
                stats |= {"failed": len(failed), "rationalized": len(again), "sampled_tokens": tokens}
                kept += again if c.hint_stays else [_without_hint(policy, rollout) for rollout in again]
        if primer or kept:
            policy.restart(c.model if c.restart else None)
            stats |= study(c, policy, [*primer, *kept], loop)
        run.record(loop, groups or None, say.read, **stats)


def keep(groups: Sequence[Group], cap: int, everything: bool = False) -> list[Rollout]:
    """Up to `cap` right rollouts of each problem, the same words once; or whatever was said (`everything`)."""
    kept, count = [], Counter()
    for group in groups:
        said = set()
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            wanted = rollout.finish == "stop" and (everything or (verdict.score or 0.0) >= 1.0)
            if wanted and rollout.last_turn() not in said and count[group.problem.id] < cap:
                said.add(rollout.last_turn())
                count[group.problem.id] += 1
                kept.append(rollout)
    return kept


def study(c: Config, policy: Policy, rollouts: Sequence[Rollout], loop: int) -> dict[str, float]:
    """Fine-tune on rollouts, drawn in a new order for each pass."""
    updates = round(c.updates * c.growth**loop)
    random, order, losses = python_random(Key(c.seed, "star study", loop)), [], []
    for update in range(updates):
        while len(order) < c.batch:
            order += random.sample(range(len(rollouts)), len(rollouts))
        chosen, order = [rollouts[i] for i in order[: c.batch]], order[c.batch :]
        rate = warm_up_hold_decay(update, updates, c.learning_rate, c.warmup, c.decay)
        batches = pack(chosen, token_mean(chosen), c.token_budget)
        losses.append(policy.update(batches, likelihood(), rate, c.clip_norm)["loss"])
    return {"loss": fmean(losses), "updates": updates, "studied": len(rollouts)}


def hinted(problem: Problem) -> Problem:
    """The problem with its answer told at the end of the question."""
    *before, last = problem.messages
    return replace(problem, messages=(*before, last._replace(content=f"{last.content} ({problem.reference})")))


def _without_hint(policy: Policy, rollout: Rollout) -> Rollout:
    """The same words behind the question as it was asked, as if nobody had told the answer."""
    *before, last = rollout.problem.messages
    question = last.content.removesuffix(f" ({rollout.problem.reference})")
    problem = replace(rollout.problem, messages=(*before, last._replace(content=question)))
    return replace(rollout.onto(policy.conversation.prompt(problem.messages)), problem=problem)


def _demonstrated(c: Config, policy: Policy, worked: Sequence[Demonstration]) -> list[Rollout]:
    keys = [Key(c.seed, "star example", 0, i) for i in range(len(worked))]
    return policy.conversation.demonstrate_all(worked, keys) if worked else []
