"""Two attempts at the same problem with a fixed request between them, and the differences between both attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from schoolhouse.policy.interface import Generator
from schoolhouse.types import REVISION_REQUEST, Completion, Group, Message, Rollout, SchoolError

_TEMPLATE_TOKENS = 32
"""Tokens reserved for the chat template's own tokens around the request."""


def two_attempts(
    policy: Generator,
    prompts: Sequence[Rollout],
    max_new_tokens: int,
    temperature: float = 1.0,
    instruction: str = REVISION_REQUEST,
) -> list[Rollout]:
    """Sample two turns for each prompt: an attempt, then the instruction, then another attempt.

    The first turn is not prefilled again for the second turn.

    max_new_tokens  limit of each attempt
    """
    conversation, request = policy.conversation, (Message("user", instruction),)

    def second_attempt(ended: Rollout) -> tuple[Rollout, int] | None:
        return (conversation.append_messages(ended, request), max_new_tokens) if len(ended.turns) == 1 else None

    request_tokens = len(conversation.tokenizer.encode(instruction)) + _TEMPLATE_TOKENS
    max_total_tokens = 2 * max_new_tokens + request_tokens
    longest = max(map(len, prompts), default=0) + max_total_tokens
    if longest > policy.max_seq_len:
        raise SchoolError(
            f"two attempts can need {longest} tokens, but the model reads {policy.max_seq_len}: lower max_new_tokens"
        )
    return policy.extend(
        prompts,
        max_new_tokens,
        temperature=temperature,
        next_turn=second_attempt,
        max_total_tokens=max_total_tokens,
    )


def first_attempts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same rollouts up to the end of their first turn."""
    return [_first_attempt(rollout) for rollout in rollouts]


def _first_attempt(rollout: Rollout) -> Rollout:
    start = rollout.turns[0]
    end = next((t for t in range(start, len(rollout)) if not rollout.loss_mask[t]), len(rollout))
    return replace(rollout.truncate(end), finish_reason=rollout.finish_reason, key=rollout.key._replace(turn=0))


@dataclass(frozen=True)
class Attempts:
    """Shares of the pairs of attempts in which both attempts are graded. Without such pairs all shares are 0.

    first, second   share of correct first attempts, and of correct second attempts
    wrong_to_right, right_to_wrong  share of pairs that changed this way; second - first is their difference
    changed         share of pairs whose final answers differ
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
    def of(
        cls, first: Sequence[Group], second: Sequence[Group], parse_completion: Callable[[Rollout], Completion]
    ) -> Attempts:
        """Compute the shares from the graded groups of both attempts.

        Raises ValueError if second - first is not the difference of wrong_to_right and right_to_wrong.
        """
        pairs = [
            (
                first_verdict.reward >= 1.0,
                second_verdict.reward >= 1.0,
                parse_completion(first_rollout).answer != parse_completion(second_rollout).answer,
            )
            for first_group, second_group in zip(first, second, strict=True)
            for first_rollout, second_rollout, first_verdict, second_verdict in zip(
                first_group.rollouts, second_group.rollouts, first_group.verdicts, second_group.verdicts, strict=True
            )
            if first_verdict.reward is not None and second_verdict.reward is not None
        ]
        n = max(1, len(pairs))
        attempts = cls(
            first=sum(a for a, _, _ in pairs) / n,
            second=sum(b for _, b, _ in pairs) / n,
            wrong_to_right=sum(b and not a for a, b, _ in pairs) / n,
            right_to_wrong=sum(a and not b for a, b, _ in pairs) / n,
            changed=sum(changed for _, _, changed in pairs) / n,
        )
        if abs(attempts.delta - (attempts.wrong_to_right - attempts.right_to_wrong)) > 1e-9:
            raise ValueError(f"delta is not wrong_to_right - right_to_wrong: {attempts}")
        return attempts

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "delta": self.delta}
