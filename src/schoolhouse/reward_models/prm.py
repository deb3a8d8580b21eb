"""A judge is a policy that says one token, the mark, behind what it holds for right.

Process reward models (Lightman et al. 2023, arXiv 2305.20050) are asked behind each step, outcome reward models (Cobbe
et al. 2021, arXiv 2110.14168) behind the whole solution. A mark is spliced in as if it had been said, so a step is read
as following steps that were right; its log-probability is the grade. Training is `update` on the marks alone
(objectives.mark), use is `score`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum, nan
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import graded_step_ends
from schoolhouse.runs.manifest import read_config
from schoolhouse.types import NAN, Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.policy.policy import Policy

LABEL_TOKEN = "+"
OUTCOME_LABELS = ("outcome", "implicit")
"""Labels after which a judge's marks behind steps say nothing."""


def labels_of_run(folder: Path) -> str | None:
    """How the judge of a run was labelled (`exact`, `soft`, ...); None where nothing beside it says so."""
    told = folder / "config.yaml"
    return read_config(told).get("labels") if told.is_file() else None


LabelPlaces = Literal["steps", "end"]
StepAggregation = Literal["product", "min", "last", "mean"]

STEP_AGGREGATIONS: Mapping[StepAggregation, Callable[[Sequence[float]], float]] = {
    "product": lambda logs: exp(fsum(logs)),
    "min": lambda logs: exp(min(logs)),
    "last": lambda logs: exp(logs[-1]),
    "mean": lambda logs: fsum(map(exp, logs)) / len(logs),
}
"""From the log-probabilities of the marks to one number: Lightman et al. take the product, Math-Shepherd the smallest,
Snell et al. (arXiv 2408.03314) the last. Labels that say whether a step is right want product or min; values of states
(Monte Carlo) want the last (Zhang et al. 2025, arXiv 2501.07301)."""


def running_values(logprobs: Sequence[float], step_aggregation: StepAggregation) -> list[float]:
    """What all steps up to each are worth together. A grade alone says whether a step is right behind right ones: the
    one behind an error may be graded as if nothing had happened."""
    return [STEP_AGGREGATIONS[step_aggregation](logprobs[: upto + 1]) for upto in range(len(logprobs))]


class LabelTokens(NamedTuple):
    """A rollout with marks in it, which alone are `written`, and where they stand."""

    rollout: Rollout
    positions: tuple[int, ...]


def label_positions(conversation: Conversation, rollout: Rollout, delimiter: str, label_places: LabelPlaces) -> list[int]:
    """Where a judge is asked: behind each complete step and the answer of the last turn, or behind the whole turn."""
    return graded_step_ends(conversation, rollout, delimiter) if label_places == "steps" else [len(rollout)]


def insert_label_tokens(
    conversation: Conversation, rollout: Rollout, delimiter: str, label_places: LabelPlaces = "steps"
) -> LabelTokens:
    """The rollout with a mark wherever the judge is asked."""
    (mark,) = conversation.tokenizer.encode(LABEL_TOKEN)
    ends = label_positions(conversation, rollout, delimiter, label_places)
    tokens: list[int] = []
    marks, start = [], 0
    for end in ends:
        tokens += rollout.tokens[start:end]
        marks.append(len(tokens))
        tokens.append(mark)
        start = end
    tokens += rollout.tokens[start:]
    places = set(marks)
    spliced = replace(
        rollout,
        tokens=tuple(tokens),
        loss_mask=tuple(i in places for i in range(len(tokens))),
        logprob=(NAN,) * len(tokens),
        turns=tuple(marks[:1]),
        finish_reason="context",
    )
    return LabelTokens(spliced, tuple(marks))


def check_same_tokenizer(first: Conversation, second: Conversation, first_name: str, second_name: str) -> None:
    """Raises SchoolError where two models do not cut text in the same way: ids of the one mean nothing to the other."""
    if first.tokenizer.vocab != second.tokenizer.vocab:
        raise SchoolError(f"{first_name} and {second_name} have other tokenizers: train the judge from a model with the same one")


@dataclass(frozen=True)
class RewardModel:
    """Grades solutions, and what there is of them so far.

    where, delimiter  as in training: a judge that is asked elsewhere knows nothing
    """

    policy: Policy
    delimiter: str
    label_places: LabelPlaces = "steps"
    step_aggregation: StepAggregation = "product"

    def step_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probabilities of the marks of each; none where there is no step yet."""
        spliced = [
            insert_label_tokens(self.policy.conversation, rollout, self.delimiter, self.label_places) for rollout in rollouts
        ]
        asked = [one for one in spliced if one.positions]
        scored = iter(self.policy.score([one.rollout for one in asked]) if asked else [])
        return [[float(p) for p in next(scored).logprob[[*one.positions]]] if one.positions else [] for one in spliced]

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One number for each, 0 to 1; nan where there is nothing to judge."""
        aggregate = STEP_AGGREGATIONS[self.step_aggregation]
        return [aggregate(logs) if logs else nan for logs in self.step_logprobs(rollouts)]
