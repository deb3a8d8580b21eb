"""Two attempts at the same problem with a fixed request between them, and how the second differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from schoolhouse.policy.interface import Generator
from schoolhouse.types import REVISION_REQUEST, Completion, Group, Message, Rollout, SchoolError


def two_attempts(
    policy: Generator,
    prompts: Sequence[Rollout],
    max_new_tokens: int,
    temperature: float = 1.0,
    instruction: str = REVISION_REQUEST,
) -> list[Rollout]:
    """Two turns for each prompt, in a kept cache: an attempt, the instruction, another attempt.

    max_new_tokens  of each attempt
    """
    request = (Message("user", instruction),)

    def second_attempt(ended: Rollout) -> tuple[Rollout, int] | None:
        return (policy.conversation.append_messages(ended, request), max_new_tokens) if len(ended.turns) == 1 else None

    between = len(policy.conversation.tokenizer.encode(instruction)) + 32  # and the template's words around it
    total = 2 * max_new_tokens + between
    longest = max(map(len, prompts), default=0) + total
    if longest > policy.max_seq_len:
        raise SchoolError(
            f"two attempts may take {longest} tokens, the model reads {policy.max_seq_len}: lower max_new_tokens"
        )
    return policy.extend(
        prompts, max_new_tokens, temperature=temperature, next_turn=second_attempt, max_total_tokens=total
    )


def first_attempts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same rollouts up to where their first turn ended."""
    return [_first_attempt(rollout) for rollout in rollouts]


def _first_attempt(rollout: Rollout) -> Rollout:
    start = rollout.turns[0]
    end = next((t for t in range(start, len(rollout)) if not rollout.loss_mask[t]), len(rollout))
    return replace(rollout.truncate(end), finish_reason=rollout.finish_reason, key=rollout.key._replace(turn=0))


@dataclass(frozen=True)
class Attempts:
    """Shares of all pairs of attempts that could be graded; nan-free: with none, all are 0.

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
    def of(cls, first: Sequence[Group], second: Sequence[Group], parse: Callable[[Rollout], Completion]) -> Attempts:
        """From the graded groups of both attempts. Raises ValueError where the identity of delta does not hold."""
        pairs = [
            (a.reward >= 1.0, b.reward >= 1.0, parse(x).answer != parse(y).answer)
            for one, other in zip(first, second, strict=True)
            for x, y, a, b in zip(one.rollouts, other.rollouts, one.verdicts, other.verdicts, strict=True)
            if a.reward is not None and b.reward is not None
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
