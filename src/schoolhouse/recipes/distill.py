"""Rejection sampling, and fine-tuning on what was kept: DeepSeek-R1's third stage, and its distillation.

Guo et al. 2025, arXiv 2501.12948, sections 2.3.3 and 2.4. A teacher answers each problem several times; answers that
are right, ended by themselves and kept to one language are what the student learns from, as if a person had worked
them. The student may be a smaller model (distillation), or the base the teacher was made from (rejection sampling).

What was kept stands in kept.jsonl of the run folder, in rows that `jsonl:` reads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from pydantic import Field, model_validator

from schoolhouse.config import Frozen, nearest
from schoolhouse.credit import rollouts_of, sampled_tokens
from schoolhouse.durable import read_lines, read_object, to_json, write_lines, write_whole
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.progress import progress
from schoolhouse.randomness import python_random
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.files import as_row, from_row
from schoolhouse.tasks.task import judge, judge_all, open_task
from schoolhouse.text.scripts import share_in
from schoolhouse.types import SCRIPTS, Demonstration, Key, Precision, Problem, Reply, SchoolError


class Config(Frozen):
    teacher: str
    """Folder of the model that answers, or of a run: its newest checkpoint."""
    model: str
    """Folder of the model that learns from it (Hugging Face format), or of a run."""
    task: str = "school"
    seed: int = 0
    problems: int = Field(1_000, gt=0)
    """Asked of the teacher, all at once before the first step."""
    samples: int = Field(4, gt=0)
    """Answers to each."""
    temperature: float = Field(1.0, ge=0)
    length: int = Field(128, gt=0)
    """Tokens an answer may take."""
    cap: int = Field(4, gt=0)
    """Answers kept of one problem, or easy ones take over."""
    language: str = ""
    """Script that a thought must be written in from beginning to end, such as latin or cjk; "": any."""
    steps: int = Field(500, gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    save_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Config:
        if self.language and self.language not in SCRIPTS:
            raise ValueError(f"there is no script `{self.language}`{nearest(self.language, SCRIPTS)}")
        return self


def distill(c: Config, run: Run) -> None:
    if not (run.folder / "harvest.json").exists():
        rows, account = harvest(c)
        write_lines(run.folder / "kept.jsonl", rows)
        write_whole(run.folder / "harvest.json", to_json(account) + "\n")
    account = read_object(run.folder / "harvest.json")
    lessons = [from_row(row) for row in read_lines(run.folder / "kept.jsonl")]
    if not lessons:
        raise SchoolError(f"nothing was kept of {account['rollouts']} answers ({account}): the teacher must be right")
    run.reads(run.folder / "kept.jsonl")
    policy = run.restore(Policy.load(run.start(c.model), c.precision, Adam(weight_decay=c.weight_decay)))

    for step in run.steps(range(run.step, c.steps), keep=policy, every=c.save_every):
        chosen = python_random(Key(c.seed, "distill", step)).choices(lessons, k=c.batch)
        keys = [Key(c.seed, "distill", step, i) for i in range(c.batch)]
        rollouts = policy.conversation.demonstrate_all(chosen, keys)
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        batches = pack(rollouts, token_mean(rollouts), c.token_budget)
        stats = policy.update(batches, likelihood(), rate, c.clip_norm)
        run.record(step, **stats, learning_rate=rate, **(account if step == 0 else {}))


def harvest(c: Config) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of what is kept of the teacher's answers, and how many were dropped for which reason."""
    teacher, task = Policy.load(c.teacher, c.precision), open_task(c.task, c.seed)
    say = teacher.conversation
    problems = [problem for problem in enumerate(task.draw(0, c.problems)) for _ in range(c.samples)]
    asked = [say.begin(p, Key(c.seed, "harvest", 0, i, g % c.samples)) for g, (i, p) in enumerate(problems)]
    with progress("teacher", len(asked), unit="answer") as advance:
        said = teacher.extend(asked, c.length, temperature=c.temperature, progress=lambda more: advance(more, ""))
    groups = judge(said, task, say.read)
    cases: list[tuple[Problem, Reply]] = []
    rows, count = [], Counter(sampled_tokens=sampled_tokens(rollouts_of(groups)))
    kept: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for group in groups:
        known = kept[group.problem.id]  # a small file's problems are asked again
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            reply = say.read(rollout)
            words = (reply.thought or "", reply.answer)
            if verdict.score is None:
                reason = "dropped_not_judged"
            elif verdict.score < 1.0 or not reply.complete:
                reason = "dropped_wrong"
            elif "\ufffd" in "".join(words):
                reason = "dropped_broken"  # half a character
            elif c.language and not words[0].strip():
                reason = "dropped_no_thought"  # it keeps to no language
            elif c.language and share_in(words[0], c.language) < 1.0:
                reason = "dropped_mixed"
            elif words in known:
                reason = "dropped_twice"
            elif len(known) >= c.cap:
                reason = "dropped_over_cap"
            else:
                reason = "kept"
                known.add(words)
                rows.append(as_row(Demonstration(group.problem, *words, "teacher")))
                cases.append((group.problem, Reply(*words)))
            count["rollouts"] += 1
            count[reason] += 1
    again = [verdict.score for verdict in judge_all(cases, task)]  # what is kept, as it is written down
    count["kept_wrong"] = sum(score is None or score < 1.0 for score in again)
    count["kept_mixed"] = sum(bool(c.language) and share_in(r.thought or "", c.language) < 1.0 for _, r in cases)
    return rows, dict(count)
