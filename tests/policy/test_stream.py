"""The stream gives rollouts that are `lag` updates old, also after a run was stopped and resumed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import ModelReference
from schoolhouse.types import Candidates, SchoolError


def sample(policy, prompts):
    return [prompt.append_sampled([1], [-0.5], "stop", policy.version) for prompt in prompts]


def versions_by_step(stream, steps):
    """For each step: (step, version that sampled it, version when it was yielded). An update follows each."""
    versions = []
    for step, (rollout,) in stream.iter_steps(steps):
        assert rollout.tokens[0] == step
        versions.append((step, rollout.policy_version, stream.policy.version))
        stream.policy.version += 1
    return versions


def version_only_policy() -> Any:
    """A policy with a version and nothing else, which can be saved."""
    policy = SimpleNamespace(version=0, state_dict=lambda: {"version": policy.version})
    policy.load_state_dict = lambda state: setattr(policy, "version", state["version"])
    return policy


@pytest.fixture
def make_stream(make_prompts):
    """A stream whose prompt in each step is the number of the step."""

    def make(lag, sample=sample):
        return RolloutStream(version_only_policy(), lambda step: make_prompts([[step]]), sample, lag)

    return make


@pytest.mark.parametrize("lag", [0, 1, 2, 10])
def test_rollouts_are_lag_updates_old(make_stream, lag):
    assert versions_by_step(make_stream(lag), range(6)) == [(step, max(0, step - lag), step) for step in range(6)]


def test_with_lag_0_a_step_is_sampled_when_the_caller_asks_for_it(make_stream, make_prompts):
    sampled = []

    def record(policy, prompts):
        sampled.append(prompts)
        return list(prompts)

    steps = make_stream(0, record).iter_steps(range(9))
    next(steps)
    assert sampled == [make_prompts([[0]])]
    next(steps)
    assert sampled == [make_prompts([[0]]), make_prompts([[1]])]


@pytest.mark.parametrize("lag", [0, 1, 3, 10])
@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.fault("killed with rollouts waiting")
def test_a_resumed_stream_gives_the_same_rollouts(make_stream, tmp_path, lag, stop):
    uninterrupted = [rollouts for _, rollouts in make_stream(lag).iter_steps(range(6))]
    first, received = make_stream(lag), []
    for step, rollouts in first.iter_steps(range(6)):
        received.append(rollouts)
        if step == stop - 1:
            break
    torch.save(first.state_dict(), tmp_path / "state")
    resumed = make_stream(lag)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    received += [rollouts for _, rollouts in resumed.iter_steps(range(stop, 6))]
    assert repr(received) == repr(uninterrupted)  # NaN is not equal to itself


@pytest.mark.parametrize("change", ["length of the prompt", "id of the problem"])
def test_a_task_with_other_prompts_than_before_is_an_error(make_stream, make_prompts, change):
    stream = make_stream(1)
    next(stream.iter_steps(range(6)))
    state = stream.state_dict()

    def other_prompts(step):
        if change == "length of the prompt":
            return make_prompts([[step, step]])
        return [replace(prompt, problem=replace(prompt.problem, id="q")) for prompt in make_prompts([[step]])]

    other = RolloutStream(version_only_policy(), other_prompts, sample, 1)
    with pytest.raises(SchoolError, match="in step 1 the task no longer gives the problems of the saved run"):
        other.load_state_dict(state)


def test_a_rollout_of_several_turns_comes_back_with_its_key(make_stream):
    def sample_two_turns(policy, prompts):
        first_turns = sample(policy, prompts)
        return [rollout.append_context([7]).append_sampled([1], [-0.5], "stop", 0) for rollout in first_turns]

    stream = make_stream(1, sample_two_turns)
    next(stream.iter_steps(range(6)))
    resumed = make_stream(1, sample_two_turns)
    resumed.load_state_dict(stream.state_dict())
    assert stream._pending
    assert repr(resumed._pending) == repr(stream._pending)


def test_the_weights_of_the_reference_are_saved_too(make_prompts, tiny_decoder):
    def stream_with_reference(seed):
        policy: Any = SimpleNamespace(decoder=tiny_decoder(seed))
        reference = ModelReference(policy)
        return RolloutStream(version_only_policy(), lambda step: make_prompts([[step]]), sample, 0, reference)

    stream, resumed = stream_with_reference(0), stream_with_reference(1)
    resumed.load_state_dict(stream.state_dict())
    assert stream.reference is not None
    assert resumed.reference is not None
    weights, resumed_weights = stream.reference.state_dict(), resumed.reference.state_dict()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


@pytest.mark.fault("killed with rollouts waiting")
def test_the_candidates_of_waiting_rollouts_come_back(make_stream, tmp_path):
    def sample_with_candidates(policy, prompts):
        rows = Candidates(np.array([[3, 1]], np.int32), np.array([[-0.25, -2.0]], np.float32))
        return [prompt.append_sampled([1], [-0.5], "stop", 0, rows) for prompt in prompts]

    stream = make_stream(1, sample_with_candidates)
    next(stream.iter_steps(range(6)))
    torch.save(stream.state_dict(), tmp_path / "state")
    resumed = make_stream(1, sample_with_candidates)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    ((_, (rollout,)),) = resumed._pending
    assert rollout.candidates.ids.tolist() == [[3, 1]]
    assert rollout.candidates.ids.dtype == np.int32
    assert rollout.candidates.logprob.tolist() == [[-0.25, -2.0]]
