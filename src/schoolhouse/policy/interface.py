"""The interface of a policy for code that samples. Searches, servers and test doubles also implement this interface.

This file imports no heavy modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


class Generator(Protocol):
    """Extends rollouts. `Policy.extend` documents the arguments."""

    conversation: Conversation

    @property
    def max_seq_len(self) -> int:
        """Maximum number of tokens in a sequence that the model can read."""
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
        """Sample up to `max_new_tokens` tokens after each prefix. Returns the rollouts in the same order."""
        ...
