"""Reward models: a judge that says a mark behind each step that is right, or behind a solution whose answer is.

Process supervision: Lightman et al. 2023, arXiv 2305.20050. Its labels come from people (`data`, in PRM800K's format),
from the task's own rules (`exact`), or from how sampled continuations end (`hard`, `soft`: Math-Shepherd, Wang et al.
2023, arXiv 2312.08935). `outcome` labels whole solutions by their answer (Cobbe et al. 2021, arXiv 2110.14168), and so
does `implicit`, whose judge is the likelihood of what was said (Yuan et al. 2024, arXiv 2412.01981).

The generator's solutions are labelled once, before the first update; a run that goes on makes the same ones again.
What was labelled stands in labels.jsonl of the run folder, in PRM800K's format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from schoolhouse.config import Frozen
from schoolhouse.credit import sampled_tokens
from schoolhouse.judges.implicit import BETA
from schoolhouse.judges.labels import Graded, by_continuations, by_rules, write_prm800k
from schoolhouse.judges.lessons import Lesson, dealt, from_file, from_rollout, outcome, whole
from schoolhouse.judges.marks import Where, same_tokens
from schoolhouse.objectives import implicit, mark
from schoolhouse.packing import pack, sequence_mean, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.randomness import python_random
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import Task, judge, open_task
from schoolhouse.text.conversation import Conversation
from schoolhouse.types import Key, Precision, SchoolError


class Config(Frozen):
    model: str
    """Folder of the model that becomes the judge (Hugging Face format), or of a run."""
    generator: str = ""
    """Folder of the model whose solutions are labelled; none: labels come from `data`."""
    data: Path | None = None
    """Labelled solutions, JSON lines in PRM800K's format."""
    labels: Literal["exact", "strict", "hard", "soft", "outcome", "implicit"] = "exact"
    """Who labels the generator's solutions: the task's rules (idle words count as right, as in PRM800K, or as wrong:
    `strict`), any or the share of continuations that end right, or the answer alone, said by a mark or by the
    likelihood of the solution itself."""
    task: str = "school:chain"
    seed: int = 0
    problems: int = Field(500, gt=0)
    samples: int = Field(4, gt=0)
    """Solutions of each."""
    length: int = Field(128, gt=0)
    temperature: float = Field(1.0, gt=0)
    continuations: int = Field(8, gt=0)
    """Behind each step, for `hard` and `soft`."""
    delimiter: str = Field("\n", min_length=1)
    """What ends a step of `data`; elsewhere the task says."""
    shuffled: bool = False
    """Deal the labels to other steps: a control, which must judge nothing."""
    steps: int = Field(500, gt=0)
    batch: int = Field(64, gt=0)
    """Solutions of an update."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    save_every: int = Field(500, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> Config:
        if (self.data is None) == (not self.generator):
            raise ValueError(
                "give either `generator`, a model whose solutions are labelled, or `data`, a file of labels"
            )
        if self.labels == "implicit" and self.data:
            raise ValueError("labels: implicit needs a `generator`: its judge learns from whole solutions of a model")
        return self


def process_reward(c: Config, run: Run) -> None:
    policy = run.restore(Policy.load(run.start(c.model), c.precision, Adam(weight_decay=c.weight_decay)))
    task, say, tokens = open_task(c.task, c.seed), policy.conversation, 0
    run.reads(*task.files, c.data)
    if c.data:
        pairs = from_file(c.data, say, c.delimiter)
    else:
        pairs, tokens = from_generator(c, task, say)
    write_prm800k(run.folder / "labels.jsonl", [graded for graded, _ in pairs])
    lessons = [lesson for _, lesson in pairs if any(lesson.rollout.written)]
    if not lessons:
        ends = f"do they think, in steps that end with {task.delimiter!r}?"
        raise SchoolError(f"{len(pairs)} solutions have no labelled step: {ends}")
    if c.shuffled:
        lessons = dealt(lessons, c.seed)
    told = [target for one in lessons for target in one.target if target == target]
    account = {"solutions": len(lessons), "labels": len(told), "labels_right": sum(told) / len(told)}
    account["sampled_tokens"] = tokens

    objective, weigh = (implicit(BETA), sequence_mean) if c.labels == "implicit" else (mark(), token_mean)
    for step in run.steps(range(run.step, c.steps), keep=policy, every=c.save_every):
        chosen = python_random(Key(c.seed, "process reward", step)).choices(lessons, k=c.batch)
        rollouts = [one.rollout for one in chosen]
        batches = pack(
            rollouts,
            weigh(rollouts),
            c.token_budget,
            target=[one.target for one in chosen],
            reference=[one.reference for one in chosen],
        )
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        stats = policy.update(batches, objective, rate, c.clip_norm)
        run.record(step, **stats, learning_rate=rate, **(account if step == 0 else {}))


def from_generator(c: Config, task: Task, judge_says: Conversation) -> tuple[list[tuple[Graded, Lesson]], int]:
    """Labelled solutions of the generator, without those that were cut off, and the tokens that took."""
    generator = Policy.load(c.generator, c.precision)
    say, problems = generator.conversation, task.draw(0, c.problems)
    same_tokens(say, judge_says, "the generator", "the judge")
    keys = [(p, Key(c.seed, "solution", 0, i, g)) for i, p in enumerate(problems) for g in range(c.samples)]
    asked = [say.begin(problem, key) for problem, key in keys]
    rollouts = generator.extend(asked, c.length, temperature=c.temperature)
    tokens = sampled_tokens(rollouts)
    said = [rollout for rollout in rollouts if rollout.finish == "stop"]
    where: Where = "end" if c.labels == "outcome" else "steps"
    if c.labels in ("exact", "strict"):
        rated = by_rules(task, say, said)
        graded = [(one.strict() if c.labels == "strict" else one).up_to_first_error() for one in rated]
    elif c.labels in ("outcome", "implicit"):
        verdicts = [verdict for group in judge(said, task, say.read) for verdict in group.verdicts]
        graded = [outcome(say, rollout, verdict.score) for rollout, verdict in zip(said, verdicts, strict=True)]
    else:
        graded, more = by_continuations(generator, task, said, c.continuations, c.length, c.labels == "hard")
        tokens += more
    pairs = zip(graded, said, strict=True)
    if c.labels == "implicit":
        known = Policy.load(c.model, c.precision).score(said)
        told = zip(graded, said, known, strict=True)
        return [(one, whole(rollout, one, score.logprob.tolist())) for one, rollout, score in told], tokens
    return [(one, from_rollout(say, rollout, one, task.delimiter, where)) for one, rollout in pairs], tokens
