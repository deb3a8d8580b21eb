"""A door: rollouts that come while others are being extended are extended as if they had been alone."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.policy.slots import Request
from schoolhouse.types import Rollout

PROMPTS = [[5, 9, 13, 2], [60], [44, 3, 21, 8, 30, 7, 7], [1, 2], [5, 9, 13, 2]]
WAYS = [
    SamplingParams(),
    SamplingParams(0.0),
    SamplingParams(0.5, top_k=5),
    SamplingParams(),
    SamplingParams(1.3, top_p=0.8),
]


class Waves:
    """Lets one more in every second step."""

    def __init__(self, waiting: Sequence[Request]) -> None:
        self.waiting, self.steps = list(waiting), 0
        self.left: dict[int, Rollout] = {}
        self.seen: dict[int, list[int]] = {}
        self.most = 0

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        self.steps += 1
        if self.steps % 2:
            return []
        return [self.waiting.pop(0)] if self.waiting else None

    def on_logits(self, owners: np.ndarray, logits_SV: torch.Tensor) -> None:
        self.most = max(self.most, len(owners))
        for owner, logits in zip(owners.tolist(), logits_SV, strict=True):
            self.seen.setdefault(owner, []).append(int(logits.argmax()))

    def on_finished(self, number: int, rollout: Rollout) -> None:
        self.left[number] = rollout


@pytest.fixture
def waves(asked) -> Waves:
    return Waves([Request(one, 12, way) for one, way in zip(asked(PROMPTS), WAYS, strict=True)])


@pytest.mark.parametrize("slots", [2, 8])
def test_who_comes_later_says_what_it_would_say_alone(tiny_decoder, asked, waves: Waves, slots: int):
    decoder = tiny_decoder()
    assert extend(decoder, [], [], (4,), 0, slots=slots, max_total_tokens=40, source=waves) == []
    for at, (rollout, way) in enumerate(zip(asked(PROMPTS), WAYS, strict=True)):
        (alone,) = extend(decoder, [rollout], 12, (4,), 0, params=way)
        assert waves.left[at].tokens == alone.tokens
        assert waves.left[at].logprob[len(rollout) :] == pytest.approx(alone.logprob[len(rollout) :], abs=1e-5)
    assert 1 < waves.most <= slots


def test_logits_are_shown_before_they_are_drawn_from(tiny_decoder, waves: Waves):
    extend(tiny_decoder(), [], [], (4,), 0, slots=8, max_total_tokens=40, source=waves)
    greedy = waves.left[1]
    assert tuple(waves.seen[1]) == greedy.tokens[len(PROMPTS[1]) :]


def test_a_turn_ends_where_its_listener_says_so(tiny_decoder, waves: Waves):
    """A client that leaves, or a text that ends an answer: the others go on."""
    heard: dict[int, int] = {}

    def hear(owner: int, token: int, logprob: float) -> bool:
        heard[owner] = heard.get(owner, 0) + 1
        return owner == 2 and heard[owner] == 3

    extend(tiny_decoder(), [], [], (), 0, slots=8, max_total_tokens=40, source=waves, on_token=hear)
    said = {at: len(one) - len(PROMPTS[at]) for at, one in waves.left.items()}
    assert said == {0: 12, 1: 12, 2: 3, 3: 12, 4: 12}
    assert waves.left[2].finish_reason == "stop"
