"""The data engine: search finds what plain sampling does not; what is verified teaches the next model; and so on.

Expert iteration (Anthony et al. 2017, arXiv 1705.08439) with any search of `school solve` as the expert. Every next
model starts from the base, and learns from verified answers with the thoughts that led to them, and from fresh worked
examples, which keep it from narrowing to what it already says (Shumailov et al. 2024, Nature 631). Each loop measures
what plain sampling can do, and which answers, rare ones among them, are still found.

What was kept stands in lessons/000001.jsonl of the run folder, in rows that `jsonl:` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from math import inf
from pathlib import Path
from statistics import fmean

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import rollouts_of, sampled_tokens
from schoolhouse.durable import read_lines, write_lines
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.randomness import python_random
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.search.show import rows
from schoolhouse.search.solve import Found, parse, solve
from schoolhouse.tasks.files import as_row, from_row
from schoolhouse.tasks.task import Task, judge, open_task
from schoolhouse.types import Demonstration, Group, Key, Precision, Problem, Rollout

Stats = dict[str, float]


class Config(Frozen):
    model: str
    """Folder of the base model, that every loop starts from (Hugging Face format), or of a run."""
    start: str = ""
    """Folder of the model that the first loop searches with; none: the base."""
    task: str = "school"
    fresh_task: str = ""
    """Where fresh worked examples come from; none: no fresh ones."""
    fresh: float = Field(0.2, ge=0, lt=1)
    """Share of each update that is fresh."""
    seed: int = 0
    loops: int = Field(4, gt=0)
    problems: int = Field(256, gt=0)
    """Searched in each loop, and asked plainly."""
    search: str = "vote?samples=16"
    """As for `school solve`; "sample" is plain sampling."""
    budget: float = Field(inf, gt=0)
    """Tokens a search may spend on one problem."""
    verify: bool = True
    """Keep right answers alone. Without, whatever was found: an ablation, which must fail."""
    most: int | None = Field(None, gt=0)
    """Answers kept of a loop at most, drawn among them: the same for ways of search that are compared."""
    gather: bool = True
    """Learn from what all loops so far have found. Without, from the last one's alone (ReST-EM)."""
    length: int = Field(128, gt=0)
    """Tokens of a plain answer."""
    updates: int = Field(150, gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(10, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"


def engine(c: Config, run: Run) -> None:
    policy = run.restore(Policy.load(run.start(c.start or c.model), c.precision, Adam(weight_decay=c.weight_decay)))
    task, how, say = open_task(c.task, c.seed), parse(c.search, c.budget), policy.conversation
    fresh = open_task(c.fresh_task, c.seed) if c.fresh_task else None
    run.reads(*task.files, *(fresh.files if fresh else ()))
    learned = [from_row(row) for loop in range(run.step) for row in read_lines(place(run, "lessons", loop))]

    for loop in run.steps(range(run.step, c.loops), keep=policy, every=1):
        problems = task.draw(loop, c.problems)

        def asked(purpose: str, problems: Sequence[Problem] = problems, loop: int = loop) -> list[Rollout]:
            return [say.begin(problem, Key(c.seed, purpose, loop, i, 0)) for i, problem in enumerate(problems)]

        plain = judge(policy.extend(asked("engine plain"), c.length), task, say.read)
        found = solve(policy, task, asked("engine search"), how)
        judged = judge([one.rollout for one in found if one.rollout], task, say.read)
        right = right_ones(judged)
        if grown := rows(found, right):
            write_lines(place(run, "trees", loop), grown)
        kept = [rollout for rollout in rollouts_of(judged) if rollout.key in right or not c.verify]
        kept = python_random(Key(c.seed, "engine most", loop)).sample(kept, min(len(kept), c.most or len(kept)))
        stats: Stats = {"kept": len(kept), **account(found, right, kept, problems)}
        stats["sampled_tokens"] = sampled_tokens(rollouts_of(plain)) + sum(one.tokens for one in found)
        replies = [(rollout.problem, say.read(rollout)) for rollout in kept]
        lessons = [Demonstration(problem, reply.thought, reply.answer, "search") for problem, reply in replies]
        write_lines(place(run, "lessons", loop), map(as_row, lessons))
        learned = [*(learned if c.gather else []), *lessons]
        if learned:
            policy.restart(c.model)
            stats |= study(c, policy, learned, fresh, loop)
        run.record(loop, plain, say.read, **stats)


def account(found: Sequence[Found], right: Set[Key], kept: Sequence[Rollout], problems: Sequence[Problem]) -> Stats:
    """What the search gave: share solved, tokens a problem, and which of the answers asked for are among what is kept.

    right     keys of the answers that are
    coverage  of the distinct right answers; `rare_coverage` of those that one problem alone asks for
    """
    asked = Counter(problem.reference for problem in problems)
    there = {rollout.problem.reference for rollout in kept if rollout.key in right}
    rare = [answer for answer, count in asked.items() if count == 1]
    return {
        "searched_right": len(right) / len(problems),
        "search_tokens": fmean(one.tokens for one in found),
        "coverage": len(there & asked.keys()) / len(asked),
        **({"rare_coverage": len(there & set(rare)) / len(rare)} if rare else {}),
    }


def place(run: Run, what: str, loop: int) -> Path:
    """The file of a loop in the run folder."""
    return run.folder / what / f"{loop:06d}.jsonl"


def study(c: Config, policy: Policy, lessons: Sequence[Demonstration], fresh: Task | None, loop: int) -> Stats:
    """Fine-tune on what was found, with a share of fresh examples in each update."""
    random, losses = python_random(Key(c.seed, "engine study", loop)), []
    new = round(c.batch * c.fresh) if fresh else 0
    for update in range(c.updates):
        chosen = random.choices(lessons, k=c.batch - new)
        chosen += fresh.worked(loop * c.updates + update, new) if fresh else []
        keys = [Key(c.seed, "engine", loop * c.updates + update, i) for i in range(len(chosen))]
        rollouts = policy.conversation.demonstrate_all(chosen, keys)
        rate = warm_up_hold_decay(update, c.updates, c.learning_rate, c.warmup, c.decay)
        batches = pack(rollouts, token_mean(rollouts), c.token_budget)
        losses.append(policy.update(batches, likelihood(), rate, c.clip_norm)["loss"])
    return {"loss": fmean(losses), "fresh": new * c.updates, "studied": len(lessons)}


def right_ones(judged: Sequence[Group]) -> set[Key]:
    """Keys of the answers that are right."""
    verdicts = [verdict for group in judged for verdict in group.verdicts]
    pairs = zip(rollouts_of(judged), verdicts, strict=True)
    return {rollout.key for rollout, verdict in pairs if verdict.score is not None and verdict.score >= 1.0}
