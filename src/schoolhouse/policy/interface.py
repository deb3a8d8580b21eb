"""The interface that sampling code needs of a policy. Searches, servers and test doubles implement it too.

Imports nothing heavy.
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
        """Tokens of the longest sequence that the model reads."""
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
        """Sample up to `max_new_tokens` after each prefix. Gives the rollouts in the same order."""
        ...
