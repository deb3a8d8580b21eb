"""Rollouts of conversations for supervised fine-tuning, with the loss on the last assistant turn or on every one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Demonstration, Key, Rollout

LossOn = Literal["last", "all"]
"""The assistant turns of a conversation that have a loss."""


def demonstration_rollouts(
    conversation: Conversation, demonstrations: Sequence[Demonstration], keys: Sequence[Key], loss_on: LossOn = "last"
) -> list[Rollout]:
    """The rollouts of demonstrations. With `all`, earlier assistant turns have a loss too.

    Each turn is trained after exactly the tokens that a model would see before it. If the template repeats earlier
    turns unchanged, one rollout has the loss of all turns. If it changes them (some templates drop earlier thoughts),
    the turn has a rollout of its own, and the list is longer than `demonstrations`.
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
    """A demonstration for each assistant turn that is trained, the last turn at the end."""
    problem, turns = demonstration.problem, []
    for at, message in enumerate(problem.messages):
        has_user = any(earlier.role == "user" for earlier in problem.messages[:at])
        if message.role == "assistant" and at not in demonstration.untrained and has_user:
            shorter = replace(problem, messages=problem.messages[:at])
            turns.append(replace(demonstration, problem=shorter, thought=message.thought, answer=message.content))
    return [*turns, demonstration]


def _with_loss_of(rollout: Rollout, earlier: Rollout) -> Rollout:
    """A rollout that continues an earlier one, with the loss of both."""
    rest = rollout.loss_mask[len(earlier) :]
    return replace(
        rollout,
        loss_mask=(*earlier.loss_mask, *rest),
        turns=(*earlier.turns, *rollout.turns),
        key=earlier.key,
    )
