"""What sampling code needs of a policy, so that tests and servers can stand in for one. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from schoolhouse.data.chat import Conversation
from schoolhouse.types import Rollout


class Generator(Protocol):
    """Extends rollouts: a `Policy`, a search that answers like one, or a scripted double.

    `Policy.extend` documents the arguments.
    """

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
        """Sample up to `max_new_tokens` after each prefix; rollouts come back in the same order."""
        ...
