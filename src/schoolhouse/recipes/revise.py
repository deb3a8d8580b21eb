"""Fine-tuning on pairs of attempts: the ways to teach self-correction that SCoRe is compared with.

Kumar et al. 2024, arXiv 2409.12917, section 4. STaR: the model attempts each problem twice, and pairs whose wrong first
attempt was mended are kept (Zelikman et al. 2022). Pair-SFT: a wrong attempt is followed by a right one at the same
problem, of which there are far more (Welleck et al. 2022, arXiv 2211.00053). With `keep_right` right attempts that are
followed by a right one are kept too, as many as there are mended ones: the paper's D+.

Only second attempts are learned: the first ones are what they answer. All pairs are the starting model's own, made
before the first update; a run that goes on makes the same ones again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field

from schoolhouse.config import Frozen
from schoolhouse.credit import sampled_tokens
from schoolhouse.measure.attempts import first_attempts, twice
from schoolhouse.objectives import likelihood
from schoolhouse.packing import pack, token_mean
from schoolhouse.policy.policy import Adam, Policy
from schoolhouse.randomness import python_random
from schoolhouse.run import Run
from schoolhouse.schedule import warm_up_hold_decay
from schoolhouse.tasks.task import Task, judge, open_task
from schoolhouse.text.conversation import Conversation
from schoolhouse.types import LOOK_AGAIN, NAN, Group, Key, Message, Precision, Rollout, SchoolError


class Pair(NamedTuple):
    """Two attempts as one rollout, and the score of each."""

    said: Rollout
    first: float
    second: float

    @property
    def mended(self) -> bool:
        return self.first < 1.0 <= self.second


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run. It should know what a second attempt is."""
    task: str = "school"
    seed: int = 0
    pairs: Literal["star", "pair_sft"] = "star"
    """The model's own second attempts, or right attempts of its own put behind wrong ones."""
    keep_right: bool = False
    """Keep right attempts followed by right ones too, as many."""
    problems: int = Field(500, gt=0)
    samples: int = Field(8, gt=1)
    """Pairs of attempts (`star`) or attempts (`pair_sft`) at each problem."""
    length: int = Field(128, gt=0)
    """Tokens of one attempt."""
    instruction: str = LOOK_AGAIN
    temperature: float = Field(1.0, gt=0)
    steps: int = Field(300, gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(20, ge=0)
    decay: float = Field(0.5, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    token_budget: int = Field(4_096, gt=0)
    precision: Precision = "auto"
    save_every: int = Field(300, gt=0)


def revise(c: Config, run: Run) -> None:
    task = open_task(c.task, c.seed)
    pairs, tokens = attempted(c, Policy.load(c.model, c.precision), task)
    lessons = chosen(c, pairs)
    if not lessons:
        raise SchoolError(f"none of {len(pairs)} pairs of attempts was mended: ask more `problems`, or more `samples`")
    account = {
        "pairs": len(pairs),
        "mended": sum(pair.mended for pair in lessons),
        "kept_right": sum(not pair.mended for pair in lessons),
        "sampled_tokens": tokens,
    }
    learned = [second_only(pair.said) for pair in lessons]
    policy = run.restore(Policy.load(run.start(c.model), c.precision, Adam(weight_decay=c.weight_decay)))
    run.reads(*task.files)

    for step in run.steps(range(run.step, c.steps), keep=policy, every=c.save_every):
        rollouts = python_random(Key(c.seed, "revise", step)).choices(learned, k=c.batch)
        rate = warm_up_hold_decay(step, c.steps, c.learning_rate, c.warmup, c.decay)
        batches = pack(rollouts, token_mean(rollouts), c.token_budget)
        stats = policy.update(batches, likelihood(), rate, c.clip_norm)
        run.record(step, **stats, learning_rate=rate, **(account if step == 0 else {}))


def chosen(c: Config, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that were mended; with `keep_right` as many that were right twice, as far as there are, drawn by lot.

    Second attempts that were cut off teach nobody to end.
    """
    ended = [pair for pair in pairs if pair.said.finish == "stop" and pair.second >= 1.0]
    mended, right = [pair for pair in ended if pair.mended], [pair for pair in ended if not pair.mended]
    few = min(len(mended), len(right)) if c.keep_right else 0
    return mended + python_random(Key(c.seed, "kept right")).sample(right, few)


def attempted(c: Config, policy: Policy, task: Task) -> tuple[list[Pair], int]:
    """Pairs of attempts at `problems`, where both could be judged, and how many tokens were sampled for all."""
    say, problems = policy.conversation, task.draw(0, c.problems)
    keys = [(p, Key(c.seed, "revise", 0, i, g)) for i, p in enumerate(problems) for g in range(c.samples)]
    asked = [say.begin(problem, key) for problem, key in keys]
    if c.pairs == "pair_sft":
        said = policy.extend(asked, c.length, temperature=c.temperature)
        pairs = [pair for group in judge(said, task, say.read) for pair in paired(group, say, c.instruction)]
        return pairs, sampled_tokens(said)
    both = twice(policy, asked, c.length, c.temperature, c.instruction)
    first, second = (
        [verdict.score for group in judge(said, task, say.read) for verdict in group.verdicts]
        for said in (first_attempts(both), both)
    )
    pairs = zip(both, first, second, strict=True)
    judged = [Pair(said, a, b) for said, a, b in pairs if a is not None and b is not None]
    return judged, sampled_tokens(both)


def paired(group: Group, say: Conversation, instruction: str) -> list[Pair]:
    """Every attempt at one problem with a right one behind it: another one where there is another. None without any.

    An attempt that was cut off is put behind none.
    """
    scored = [(said, v.score) for said, v in zip(group.rollouts, group.verdicts, strict=True) if v.score is not None]
    right = [said for said, score in scored if score >= 1.0 and said.finish == "stop"]
    pairs, request = [], (Message("user", instruction),)
    for at, (said, score) in enumerate(scored if right else []):
        others = [other for other in right if other is not said] or right
        words = others[at % len(others)].last_turn()
        second = say.follow_up(said, request).said(words, (NAN,) * len(words), "stop", said.version)
        pairs.append(Pair(second, score, 1.0))
    return pairs


def second_only(pair: Rollout) -> Rollout:
    """The same words, of which those before the last turn are read and not learned."""
    start = pair.turns[-1]
    return replace(pair, written=(False,) * start + pair.written[start:], turns=(start,))
