"""Makes rollouts of conversations for supervised fine-tuning, with a loss on the last or on every assistant turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Demonstration, Key, Rollout

LossOn = Literal["last", "all"]
"""The assistant turns of a conversation that have a loss: the last turn, or all turns."""


def demonstration_rollouts(
    conversation: Conversation, demonstrations: Sequence[Demonstration], keys: Sequence[Key], loss_on: LossOn = "last"
) -> list[Rollout]:
    """Make the rollouts of demonstrations. With `loss_on="all"`, earlier assistant turns have a loss too.

    The tokens before a trained turn are exactly the tokens that the model would get before this turn in a chat. If the
    template writes earlier turns again without changes, one rollout has the loss of all turns. If the template changes
    earlier turns (some templates drop earlier thoughts), each changed turn gets its own rollout. If turns get their own
    rollouts, the returned list is longer than `demonstrations`.
    """
    if loss_on == "last":
        return conversation.demonstration_rollouts(demonstrations, keys)
    turns = [turn for demonstration in demonstrations for turn in _each_turn(demonstration)]
    turn_keys = [
        key._replace(turn=at)
        for demonstration, key in zip(demonstrations, keys, strict=True)
        for at, _ in enumerate(_each_turn(demonstration))
    ]
    merged: list[Rollout] = []
    for rollout in conversation.demonstration_rollouts(turns, turn_keys):
        earlier = merged[-1] if merged and rollout.key.turn else None
        if earlier and rollout.tokens[: len(earlier)] == earlier.tokens:
            merged[-1] = _with_loss_of(rollout, earlier)
        else:
            merged.append(rollout)
    return merged


def _each_turn(demonstration: Demonstration) -> list[Demonstration]:
    """Return one demonstration for each assistant turn that is trained, in the order of the turns."""
    problem, turns = demonstration.problem, []
    for at, message in enumerate(problem.messages):
        has_user = any(earlier.role == "user" for earlier in problem.messages[:at])
        if message.role == "assistant" and at not in demonstration.untrained and has_user:
            shorter = replace(problem, messages=problem.messages[:at])
            turns.append(replace(demonstration, problem=shorter, thought=message.thought, answer=message.content))
    return [*turns, demonstration]


def _with_loss_of(rollout: Rollout, earlier: Rollout) -> Rollout:
    """Return a rollout that continues an earlier rollout, with the loss of both rollouts."""
    rest = rollout.loss_mask[len(earlier) :]
    return replace(
        rollout,
        loss_mask=(*earlier.loss_mask, *rest),
        turns=(*earlier.turns, *rollout.turns),
        key=earlier.key,
    )
