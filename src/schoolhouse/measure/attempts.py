"""Two attempts at the same problem with a fixed request between them: how they are asked for, and what they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from schoolhouse.text.conversation import Conversation
from schoolhouse.types import LOOK_AGAIN, Group, Message, Reply, Rollout, SchoolError


class Speaker(Protocol):
    """What two attempts need of a policy."""

    conversation: Conversation

    @property
    def longest(self) -> int: ...

    def extend(
        self,
        rollouts: Sequence[Rollout],
        length: int,
        *,
        temperature: float = 1.0,
        then: Callable[[Rollout], tuple[Rollout, int] | None] | None = None,
        room: int | None = None,
    ) -> list[Rollout]: ...


def twice(
    policy: Speaker, prefixes: Sequence[Rollout], length: int, temperature: float = 1.0, instruction: str = LOOK_AGAIN
) -> list[Rollout]:
    """Two turns for each prefix, in a kept cache: an attempt, the instruction, another attempt."""
    request = (Message("user", instruction),)

    def again(ended: Rollout) -> tuple[Rollout, int] | None:
        return (policy.conversation.follow_up(ended, request), length) if len(ended.turns) == 1 else None

    said = len(policy.conversation.tokenizer.encode(instruction)) + 32  # and the template's words around it
    longest = max(map(len, prefixes), default=0) + 2 * length + said
    if longest > policy.longest:
        raise SchoolError(f"two attempts may take {longest} tokens, the model reads {policy.longest}: lower `length`")
    return policy.extend(prefixes, length, temperature=temperature, then=again, room=2 * length + said)


def first_attempts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same rollouts up to where their first turn ended."""
    return [_up_to_first(rollout) for rollout in rollouts]


def _up_to_first(rollout: Rollout) -> Rollout:
    start = rollout.turns[0]
    end = next((t for t in range(start, len(rollout)) if not rollout.written[t]), len(rollout))
    return replace(rollout.up_to(end), finish=rollout.finish, key=rollout.key._replace(turn=0))


@dataclass(frozen=True)
class Attempts:
    """Shares of all pairs of attempts that could be judged; nan-free: with none, all are 0.

    first, second   right
    wrong_to_right  and right_to_wrong: second - first is their difference
    changed         the final answer is another one
    """

    first: float
    second: float
    wrong_to_right: float
    right_to_wrong: float
    changed: float

    @property
    def delta(self) -> float:
        return self.second - self.first

    @classmethod
    def of(cls, first: Sequence[Group], second: Sequence[Group], read: Callable[[Rollout], Reply]) -> Attempts:
        """From the judged groups of both attempts. Raises ValueError where the identity of delta does not hold."""
        pairs = [
            (a.score >= 1.0, b.score >= 1.0, read(x).answer != read(y).answer)
            for one, other in zip(first, second, strict=True)
            for x, y, a, b in zip(one.rollouts, other.rollouts, one.verdicts, other.verdicts, strict=True)
            if a.score is not None and b.score is not None
        ]
        n = max(1, len(pairs))
        found = cls(
            sum(a for a, _, _ in pairs) / n,
            sum(b for _, b, _ in pairs) / n,
            sum(b and not a for a, b, _ in pairs) / n,
            sum(a and not b for a, b, _ in pairs) / n,
            sum(other for _, _, other in pairs) / n,
        )
        if abs(found.delta - (found.wrong_to_right - found.right_to_wrong)) > 1e-9:
            raise ValueError(f"delta is not wrong_to_right - right_to_wrong: {found}")
        return found

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "delta": self.delta}
