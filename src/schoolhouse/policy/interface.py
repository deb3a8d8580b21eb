"""The interface for code that samples from a policy.

Searches, servers and the fake policies in tests also implement the interface `Generator`.

This file imports no large modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


class Generator(Protocol):
    """A generator extends rollouts. The docstring of `Policy.extend` explains the arguments."""

    conversation: Conversation

    @property
    def max_seq_len(self) -> int:
        """The length of the longest sequence that the model can read, in tokens."""
        ...

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 1.0,
        stop_strings: Sequence[str] = (),
        next_turn: Callable[[Rollout], tuple[Rollout, int] | None] | None = None,
        max_total_tokens: int | None = None,
        on_token: Callable[[int, int, float], bool | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """Sample up to `max_new_tokens` tokens after each prefix.

        Returns the rollouts in the order of their prefixes.
        """
        ...
