"""Describe the progress of the sampler: finished answers, sampled tokens, tokens/s, and an estimate of the time left.

The answers of a batch are sampled at the same time, so the time per finished answer is unknown until the first answers
end. For this reason, the estimate of the time left uses tokens. The estimate assumes that an answer ends with the same
probability after each token (ended answers / sampled tokens), and that no answer exceeds its limit of tokens.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from schoolhouse.runs.progress import duration, phase

_MIN_SECONDS = 5.0  # before this time the estimate is too uncertain to be shown
_WINDOW_SECONDS = 15.0  # the speed is measured over the last seconds


@contextmanager
def sampling_phase(
    num_rollouts: int, max_new_tokens: int | Sequence[int], on_token: object
) -> Generator[SamplingProgress | None]:
    """Show a call of the sampler in the progress display. With `on_token`, nothing is shown, because the caller shows
    each token."""
    if on_token:
        yield None
        return
    limit = max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens, default=0)
    with phase("sampling") as running:
        meter = SamplingProgress(num_rollouts, limit)
        running.detail = meter.describe
        yield meter


class SamplingProgress:
    """Counts the tokens and the answers of one call of the sampler.

    `num_rollouts`: the number of answers to sample.
    `max_new_tokens`: the largest limit of the tokens of an answer.
    """

    def __init__(self, num_rollouts: int, max_new_tokens: int) -> None:
        self._num_rollouts, self._cap = num_rollouts, max_new_tokens
        self._finished = self._ended = self._tokens = self._running_tokens = self._busy = self._steps = 0
        now = time.monotonic()
        self._first_step = now
        self._recent = deque([(now, 0, 0)])  # (time, tokens, steps), about one entry per second

    def after_step(self, busy: int) -> None:
        """Count one decoding step, in which `busy` answers got one token."""
        now = time.monotonic()
        self._busy, self._steps = busy, self._steps + 1
        self._tokens += busy
        self._running_tokens += busy
        if self._steps == 1:  # the time before the first token is the prefill of the prompts
            self._first_step = now
            self._recent = deque([(now, self._tokens, 1)])
        if now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, self._tokens, self._steps))
            while now - self._recent[0][0] > _WINDOW_SECONDS:
                self._recent.popleft()

    def after_finished(self, lengths: Sequence[int], ended: int) -> None:
        """Count finished answers with these lengths. `ended` is the number of answers that ended before their limit of
        tokens."""
        self._finished += len(lengths)
        self._ended += ended
        self._running_tokens -= sum(lengths)
        self._busy -= len(lengths)

    def describe(self) -> str:
        """Describe the progress, for example as `40/256 answers, 3,400 tokens, 130 tokens/s, about 2 min 0 s left`."""
        text = f"{self._finished:,}/{self._num_rollouts:,} answers"
        if not self._tokens:
            return f"{text}, reading the prompts"
        text += f", {self._tokens:,} tokens"
        start, tokens, steps = self._recent[0]
        spent = time.monotonic() - start
        if spent < 1.0 or self._tokens == tokens:
            return text
        text += f", {(self._tokens - tokens) / spent:,.0f} tokens/s"
        if time.monotonic() - self._first_step < _MIN_SECONDS:
            return text
        seconds = self.seconds_left((self._tokens - tokens) / spent, (self._steps - steps) / spent)
        return f"{text}, {'about' if self._ended else 'at most'} {duration(seconds)} left"

    def seconds_left(self, tokens_per_second: float, steps_per_second: float) -> float:
        """Estimate the time until all answers are finished. If no answer has ended yet, the result is an upper
        bound."""
        busy = max(self._busy, 0)
        waiting = max(self._num_rollouts - self._finished - busy, 0)
        sampled = self._running_tokens / busy if busy else 0.0
        rate = self._ended / self._tokens  # answers that end per token
        room = max(self._cap - sampled, 1.0)
        tokens = busy * _expected_tokens(rate, room) + waiting * _expected_tokens(rate, self._cap)
        last = min(self._cap if waiting else room, (math.log(max(busy + waiting, 1)) + 1) / rate if rate else math.inf)
        return max(tokens / tokens_per_second, last / steps_per_second)


def _expected_tokens(rate: float, limit: float) -> float:
    """The expected number of tokens of an answer that ends with probability `rate` after each token, up to a limit."""
    return -math.expm1(-rate * limit) / rate if rate else limit
