"""The stream hands out rollouts as many updates old as it was asked to, also after a run was stopped and goes on."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schoolhouse.policy.stream import RolloutStream
from schoolhouse.types import SchoolError


def act(policy, prefixes):
    return [rollout.append_sampled([1], [-0.5], "stop", policy.version) for rollout in prefixes]


def versions_handed_out(stream, steps):
    """For each step handed out: (step, version that sampled it, version at that moment). An update after each."""
    seen = []
    for step, (rollout,) in stream.over(steps):
        assert rollout.tokens[0] == step
        seen.append((step, rollout.policy_version, stream.policy.version))
        stream.policy.version += 1
    return seen


def counting() -> Any:
    """A policy of which only the version is asked, and which remembers it."""
    policy = SimpleNamespace(version=0, state_dict=lambda: {"version": policy.version})
    policy.load_state_dict = lambda state: setattr(policy, "version", state["version"])
    return policy


@pytest.mark.parametrize("lag", [0, 1, 2, 10])
def test_with_a_lag_rollouts_are_so_many_updates_old(asked, lag):
    stream = RolloutStream(counting(), lambda step: asked([[step]]), act, lag)
    assert versions_handed_out(stream, range(6)) == [(step, max(0, step - lag), step) for step in range(6)]


def test_without_lag_nothing_is_sampled_before_the_caller_asks(asked):
    acted = []

    def note(policy, prefixes):
        acted.append(prefixes)
        return list(prefixes)

    handed = RolloutStream(counting(), lambda step: asked([[step]]), note).iter_steps(range(9))
    next(handed)
    assert acted == [asked([[0]])]
    next(handed)
    assert acted == [asked([[0]]), asked([[1]])]


@pytest.mark.parametrize("lag", [0, 1, 3, 10])
@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.fault("killed with rollouts waiting")
def test_a_stream_that_was_saved_hands_out_the_very_same(asked, tmp_path, lag, stop):
    def new():
        return RolloutStream(counting(), lambda step: asked([[step]]), act, lag)

    whole = [rollouts for _, rollouts in new().over(range(6))]
    first, kept = new(), []
    for step, rollouts in first.over(range(6)):
        kept.append(rollouts)
        if step == stop - 1:
            break
    torch.save(first.state_dict(), tmp_path / "state")
    second = new()
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    kept += [rollouts for _, rollouts in second.over(range(stop, 6))]
    assert repr(kept) == repr(whole)  # nan is not equal to itself


def test_a_task_that_asks_otherwise_than_before_is_noticed(asked):
    stream = RolloutStream(counting(), lambda step: asked([[step]]), act, 1)
    next(stream.iter_steps(range(6)))
    state = stream.state_dict()
    other = RolloutStream(counting(), lambda step: asked([[step, step]]), act, 1)
    with pytest.raises(SchoolError, match="step 1 than when the run was saved"):
        other.load_state_dict(state)

    def renamed(step):
        return [replace(prefix, problem=replace(prefix.problem, id="q")) for prefix in asked([[step]])]

    with pytest.raises(SchoolError, match="step 1 than when the run was saved"):  # as long, and another problem
        RolloutStream(counting(), renamed, act, 1).load_state_dict(state)


def test_a_rollout_of_several_turns_comes_back_with_its_key(asked):
    def twice(policy, prefixes):
        return [rollout.append_context([7]).append_sampled([1], [-0.5], "stop", 0) for rollout in act(policy, prefixes)]

    stream = RolloutStream(counting(), lambda step: asked([[step]]), twice, 1)
    next(stream.iter_steps(range(6)))
    again = RolloutStream(counting(), lambda step: asked([[step]]), twice, 1)
    again.load_state_dict(stream.state_dict())
    assert repr(again._waiting) == repr(stream._waiting)
