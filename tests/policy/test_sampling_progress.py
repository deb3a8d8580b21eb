"""The description of how far the sampler is."""

import math

import pytest

from schoolhouse.policy import sampling_progress as module
from schoolhouse.policy.sampling_progress import SamplingProgress
from schoolhouse.randomness import python_random
from schoolhouse.types import Key


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def sample(
    meter: SamplingProgress, lengths: list[int], limit: int, slots: int, clock: Clock, steps: int = 10**9
) -> None:
    """Simulate a sampler with steps of .1 s and full slots, for a number of steps."""
    waiting = [min(length, limit) for length in lengths]
    running: dict[int, list[int]] = {}
    while (waiting or running) and steps:
        while waiting and len(running) < slots:
            running[len(waiting)] = [0, waiting.pop()]
        clock.now, steps = clock.now + 0.1, steps - 1
        meter.after_step(len(running))
        for counts in running.values():
            counts[0] += 1
        done = [name for name, (count, length) in running.items() if count == length]
        ended = [running.pop(name)[1] for name in done]
        if ended:
            meter.after_finished(ended, sum(length < limit for length in ended))


def test_before_the_first_token_no_rate_is_shown(clock: Clock) -> None:
    meter = SamplingProgress(256, 128)
    clock.now = 30.0
    assert meter.describe() == "0/256 answers, reading the prompts"


def test_while_no_answer_has_ended_the_time_left_is_an_upper_bound(clock: Clock) -> None:
    meter = SamplingProgress(8, 128)
    sample(meter, [1000] * 8, 128, 8, clock, steps=64)
    assert meter.describe() == "0/8 answers, 512 tokens, 80 tokens/s, at most 6 s left"


def test_the_time_of_the_prefill_is_not_part_of_the_speed(clock: Clock) -> None:
    meter = SamplingProgress(8, 128)
    clock.now = 60.0
    sample(meter, [1000] * 8, 128, 8, clock, steps=64)
    assert "80 tokens/s" in meter.describe()


@pytest.mark.parametrize("slots", [16, 64, 400])
def test_the_estimate_is_right_within_half_at_a_quarter_of_the_time(clock: Clock, slots: int) -> None:
    """The kind of `school evaluate`: all answers run at once, and the first ones end after few tokens."""
    random = python_random(Key(0, "lengths"))
    lengths = [1 + int(random.expovariate(1 / 60)) for _ in range(400)]
    sample(SamplingProgress(400, 256), lengths, 256, slots, clock)
    whole, clock.now = clock.now, 0.0
    meter = SamplingProgress(400, 256)
    sample(meter, lengths, 256, slots, clock, steps=round(whole / 0.1 / 4))
    start, tokens, count = meter._recent[0]
    rate = (meter._tokens - tokens) / (clock.now - start)
    left = meter.seconds_left(rate, (meter._steps - count) / (clock.now - start))
    truth = whole - clock.now
    assert math.isclose(left, truth, rel_tol=0.5), (left, truth)


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    meter = SamplingProgress(4, 16)
    sample(meter, [4, 8, 12, 16], 16, 4, clock)
    assert meter.describe().startswith("4/4 answers, 40 tokens")
