"""What a reward model holds of an answer, step by step: the second opinion that `school serve --judge` gives."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import STEP_AGGREGATIONS, RewardModel, label_positions
from schoolhouse.runs.atomic_io import read_json
from schoolhouse.runs.manifest import read_config
from schoolhouse.serve.api_schema import MOST_MESSAGES, Said, Unfit, sound
from schoolhouse.serve.settings import Serve
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Key, Problem, SchoolError

RECIPE = "prm"
"""Whose runs make judges."""


class Solution(BaseModel):
    """POST /api/opinion: a conversation whose last turn is to be judged."""

    model_config = ConfigDict(extra="forbid")
    messages: Annotated[list[Said], Field(min_length=2, max_length=MOST_MESSAGES)]

    _sound = model_validator(mode="before")(sound)

    @model_validator(mode="after")
    def _answered(self) -> Solution:
        if self.messages[-1].role != "assistant":
            raise ValueError("the last message is not the assistant's: there is nothing to judge")
        return self


def load_judge(c: Serve) -> RewardModel | None:
    """The judge that the server was given, to be asked as it was trained, where its run says how.

    Raises SchoolError for a folder that holds no model, for a run that made no judge, and for an implicit judge, which
    says no marks.
    """
    if c.judge is None:
        return None
    made = read_config(c.judge / "config.yaml") if (c.judge / "config.yaml").is_file() else {}
    recipe = read_json(c.judge / "manifest.json").get("recipe") if made else RECIPE
    if recipe != RECIPE:
        raise SchoolError(f"{c.judge} is a run of {recipe}, not of {RECIPE}: give --judge the run of a reward model")
    if made.get("labels") == "implicit":
        raise SchoolError(f"{c.judge} is an implicit judge, which says no marks: use it in `school solve --search`")
    where = c.judged or ("end" if made.get("labels") == "outcome" else "steps")
    if c.task or not made.get("task"):
        delimiter = (open_task(c.task, c.seed) if c.task else Task()).delimiter
    else:
        delimiter = made.get("delimiter", "\n") if made.get("data") else open_task(made["task"]).delimiter
    return RewardModel(
        Policy.load(c.judge), delimiter, where
    )  # by product: best for values too (docs/claims/mc_labels.md)


def opinion(judge: RewardModel, messages: Sequence[Said]) -> dict[str, Any]:
    """`grade` of the whole, 0 to 1, and `steps`, each with its own; the answer is the last step.

    Raises Unfit for what is longer than the judge reads.
    """
    say = judge.policy.conversation
    *before, last = (said.message for said in messages)
    problem = Problem("judged", tuple(before), "")
    rollout = say.demonstration_rollout(Demonstration(problem, last.thought, last.content), Key(0, "judged"))
    ends = label_positions(say, rollout, judge.delimiter, judge.label_places)
    if len(rollout) + len(ends) > judge.policy.max_seq_len:
        raise Unfit(
            f"the judge reads {judge.policy.max_seq_len} tokens, this is more", "messages", "context_length_exceeded"
        )
    (logs,) = judge.step_logprobs([rollout])
    begins = [say.thought_span(rollout)[0], *ends]
    steps = [
        {"text": say.tokenizer.decode(rollout.tokens[a:b]).strip(), "grade": exp(log)}
        for a, b, log in zip(begins, ends, logs, strict=False)
    ]
    if last.content and steps:
        steps[-1]["text"] = last.content
    return {"grade": STEP_AGGREGATIONS[judge.step_aggregation](logs), "steps": steps}
