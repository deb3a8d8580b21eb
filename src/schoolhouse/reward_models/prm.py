"""A reward model is a policy that scores one token, the label token, after each step or after the whole solution.

Process reward models (Lightman et al. 2023, arXiv 2305.20050) score a label token after each step. Outcome reward
models (Cobbe et al. 2021, arXiv 2110.14168) score a label token after the whole solution. Label tokens are inserted
into the solution, so the reward model reads each step as if all earlier steps were labelled correct. The
log-probability of a label token is the reward of its step. The reward model is trained with `Policy.update` on the
label tokens alone (losses.token_bce), and used with `Policy.score`.
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
"""The kinds of labels that belong to whole solutions. A model that was trained on such labels gives no useful scores to
label tokens after single steps."""

LabelPlaces = Literal["steps", "end"]
"""The positions of label tokens: after each step and after the answer (`steps`), or at the solution's end (`end`)."""
StepAggregation = Literal["product", "min", "last", "mean"]

STEP_AGGREGATIONS: Mapping[StepAggregation, Callable[[Sequence[float]], float]] = {
    "product": lambda logprobs: exp(fsum(logprobs)),
    "min": lambda logprobs: exp(min(logprobs)),
    "last": lambda logprobs: exp(logprobs[-1]),
    "mean": lambda logprobs: fsum(map(exp, logprobs)) / len(logprobs),
}
"""How the log-probabilities of steps become one value. Lightman et al. take the product, Math-Shepherd takes the
minimum, Snell et al. (arXiv 2408.03314) take the last. Labels of correct steps need product or min. Values of states
(Monte Carlo) need the last (Zhang et al. 2025, arXiv 2501.07301)."""


def labels_of_run(folder: Path) -> str | None:
    """Return the value of the config key `labels` of a reward model's run, such as `exact` or `soft`.

    Returns None if the folder has no config.
    """
    config = folder / "config.yaml"
    return read_config(config).get("labels") if config.is_file() else None


def running_values(logprobs: Sequence[float], step_aggregation: StepAggregation) -> list[float]:
    """Compute the value of a solution up to each step.

    The reward of a single step is not a good value, because a step after an error can get a high reward.
    """
    aggregate = STEP_AGGREGATIONS[step_aggregation]
    return [aggregate(logprobs[: last + 1]) for last in range(len(logprobs))]


class LabelTokens(NamedTuple):
    """A rollout with inserted label tokens, and the positions of the label tokens.

    The loss mask of the rollout covers only the label tokens.
    """

    rollout: Rollout
    positions: tuple[int, ...]


def label_positions(
    conversation: Conversation, rollout: Rollout, delimiter: str, label_places: LabelPlaces
) -> list[int]:
    """Return the positions at which label tokens are inserted into a rollout.

    If `label_places` is "steps", a label token follows each complete step and the answer of the last turn. If
    `label_places` is "end", one label token is at the end of the rollout.
    """
    return graded_step_ends(conversation, rollout, delimiter) if label_places == "steps" else [len(rollout)]


def insert_label_tokens(
    conversation: Conversation, rollout: Rollout, delimiter: str, label_places: LabelPlaces = "steps"
) -> LabelTokens:
    """Insert a label token at each label position of a rollout."""
    (label_id,) = conversation.tokenizer.encode(LABEL_TOKEN)
    tokens: list[int] = []
    positions, start = [], 0
    for end in label_positions(conversation, rollout, delimiter, label_places):
        tokens += rollout.tokens[start:end]
        positions.append(len(tokens))
        tokens.append(label_id)
        start = end
    tokens += rollout.tokens[start:]
    is_label = [False] * len(tokens)
    for position in positions:
        is_label[position] = True
    labelled = replace(
        rollout,
        tokens=tuple(tokens),
        loss_mask=tuple(is_label),
        logprob=(NAN,) * len(tokens),
        turns=tuple(positions[:1]),
        finish_reason="context",
    )
    return LabelTokens(labelled, tuple(positions))


def check_same_tokenizer(first: Conversation, second: Conversation, first_name: str, second_name: str) -> None:
    """Raise SchoolError if two models have different tokenizers.

    With different tokenizers, the same token ids mean different texts for the two models.
    """
    if first.tokenizer.vocab != second.tokenizer.vocab:
        raise SchoolError(
            f"{first_name} and {second_name} have different tokenizers: train the reward model from a model with the "
            "same tokenizer"
        )


@dataclass(frozen=True)
class RewardModel:
    """Gives values to solutions and to parts of solutions.

    `delimiter`: the text that ends a step; the same text as in training.
    `label_places`: the places of label tokens; the same places as in training.
    """

    policy: Policy
    delimiter: str
    label_places: LabelPlaces = "steps"
    step_aggregation: StepAggregation = "product"

    def step_logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Compute the log-probabilities of the label tokens of each rollout.

        The list of a rollout is empty if the rollout has no complete step.
        """
        labelled = [
            insert_label_tokens(self.policy.conversation, rollout, self.delimiter, self.label_places)
            for rollout in rollouts
        ]
        with_labels = [one.rollout for one in labelled if one.positions]
        scores = iter(self.policy.score(with_labels) if with_labels else [])
        return [[float(p) for p in next(scores).logprob[[*one.positions]]] if one.positions else [] for one in labelled]

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return one value from 0 to 1 for each rollout, or nan if the rollout has no complete step."""
        aggregate = STEP_AGGREGATIONS[self.step_aggregation]
        return [aggregate(logprobs) if logprobs else nan for logprobs in self.step_logprobs(rollouts)]
