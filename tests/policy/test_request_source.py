"""A request source: rollouts that arrive while others are being extended get the same tokens as alone."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.policy.slots import Request
from schoolhouse.types import Rollout

PROMPTS = [[5, 9, 13, 2], [60], [44, 3, 21, 8, 30, 7, 7], [1, 2], [5, 9, 13, 2]]
PARAMS = [
    SamplingParams(),
    SamplingParams(0.0),
    SamplingParams(0.5, top_k=5),
    SamplingParams(),
    SamplingParams(1.3, top_p=0.8),
]


class SlowSource:
    """Gives one request in every second step, and records the rest."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, self.steps = list(requests), 0
        self.finished: dict[int, Rollout] = {}
        self.likeliest: dict[int, list[int]] = {}
        self.max_busy = 0

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        self.steps += 1
        if self.steps % 2:
            return []
        return [self.requests.pop(0)] if self.requests else None

    def on_logits(self, owners: np.ndarray, logits_SV: torch.Tensor) -> None:
        self.max_busy = max(self.max_busy, len(owners))
        for owner, logits in zip(owners.tolist(), logits_SV, strict=True):
            self.likeliest.setdefault(owner, []).append(int(logits.argmax()))

    def on_finished(self, number: int, rollout: Rollout) -> None:
        self.finished[number] = rollout


@pytest.fixture
def source(make_prompts) -> SlowSource:
    return SlowSource(
        [Request(prompt, 12, params) for prompt, params in zip(make_prompts(PROMPTS), PARAMS, strict=True)]
    )


@pytest.mark.parametrize("num_slots", [2, 8])
def test_a_later_request_gets_the_same_tokens_as_alone(tiny_decoder, make_prompts, source, num_slots):
    decoder = tiny_decoder()
    assert extend(decoder, [], [], (4,), 0, num_slots=num_slots, max_total_tokens=40, source=source) == []
    for number, (prompt, params) in enumerate(zip(make_prompts(PROMPTS), PARAMS, strict=True)):
        (alone,) = extend(decoder, [prompt], 12, (4,), 0, params=params)
        served = source.finished[number]
        assert served.tokens == alone.tokens
        assert served.logprob[len(prompt) :] == pytest.approx(alone.logprob[len(prompt) :], abs=1e-5)
    assert 1 < source.max_busy <= num_slots


def test_on_logits_is_called_before_each_token_is_sampled(tiny_decoder, source):
    extend(tiny_decoder(), [], [], (4,), 0, num_slots=8, max_total_tokens=40, source=source)
    greedy = source.finished[1]
    assert tuple(source.likeliest[1]) == greedy.tokens[len(PROMPTS[1]) :]


def test_on_token_ends_one_turn_while_the_others_continue(tiny_decoder, source):
    """As when a client disconnects."""
    counts: dict[int, int] = {}

    def on_token(number: int, token: int, logprob: float) -> bool:
        counts[number] = counts.get(number, 0) + 1
        return number == 2 and counts[number] == 3

    extend(tiny_decoder(), [], [], (), 0, num_slots=8, max_total_tokens=40, source=source, on_token=on_token)
    new_tokens = {number: len(rollout) - len(PROMPTS[number]) for number, rollout in source.finished.items()}
    assert new_tokens == {0: 12, 1: 12, 2: 3, 3: 12, 4: 12}
    assert source.finished[2].finish_reason == "stop"
