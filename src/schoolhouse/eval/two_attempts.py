"""The policy makes two attempts at the same problem, and reads a fixed request to revise before the second attempt.

The functions in this file sample two attempts and measure the differences between the two attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from schoolhouse.data.chat import Conversation
from schoolhouse.policy.interface import Generator
from schoolhouse.types import REVISION_REQUEST, Completion, Group, Message, Rollout, SchoolError

_TEMPLATE_TOKENS = 32
"""The number of tokens that are reserved for the chat template's own tokens around the request."""


def two_attempts(
    policy: Generator,
    prompts: Sequence[Rollout],
    max_new_tokens: int,
    temperature: float = 1.0,
    instruction: str = REVISION_REQUEST,
) -> list[Rollout]:
    """Sample two attempts for each prompt. The second attempt follows the first attempt and the `instruction`.

    The KV cache of the first attempt is kept for the second attempt, so no prefill is repeated.

    `max_new_tokens`: the maximum number of tokens of each attempt.
    """
    conversation, request = policy.conversation, (Message("user", instruction),)

    def second_attempt(ended: Rollout) -> tuple[Rollout, int] | None:
        return (conversation.append_messages(ended, request), max_new_tokens) if len(ended.turns) == 1 else None

    max_total_tokens = tokens_of_two_attempts(conversation, max_new_tokens, instruction)
    longest = max(map(len, prompts), default=0) + max_total_tokens
    if longest > policy.max_seq_len:
        raise SchoolError(
            f"two attempts can need {longest} tokens, but the model can read at most {policy.max_seq_len} tokens: "
            "lower max_new_tokens"
        )
    return policy.extend(
        prompts,
        max_new_tokens,
        temperature=temperature,
        next_turn=second_attempt,
        max_total_tokens=max_total_tokens,
    )


def tokens_of_two_attempts(conversation: Conversation, max_new_tokens: int, instruction: str = REVISION_REQUEST) -> int:
    """Return the maximum number of tokens of two attempts and of the request between them, without the prompt."""
    return 2 * max_new_tokens + len(conversation.tokenizer.encode(instruction)) + _TEMPLATE_TOKENS


def first_attempts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Cut each rollout at the end of its first attempt."""
    return [_first_attempt(rollout) for rollout in rollouts]


def _first_attempt(rollout: Rollout) -> Rollout:
    start = rollout.turns[0]
    end = next((t for t in range(start, len(rollout)) if not rollout.loss_mask[t]), len(rollout))
    return replace(rollout.truncate(end), finish_reason=rollout.finish_reason, key=rollout.key._replace(turn=0))


@dataclass(frozen=True)
class Attempts:
    """Fractions of pairs of attempts: only pairs with two graded attempts are counted.

    If no pair has two graded attempts, all fractions are 0.

    `first`: the fraction of pairs whose first attempt is correct.
    `second`: the fraction of pairs whose second attempt is correct.
    `wrong_to_right`: the fraction of pairs whose first attempt is wrong and whose second attempt is correct.
    `right_to_wrong`: the fraction of pairs whose first attempt is correct and whose second attempt is wrong.
    `changed`: the fraction of pairs whose two final answers differ.
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
        """Compute the fractions from the graded groups (rollouts of one problem) of both attempts.

        Raises ValueError if `second - first` differs from `wrong_to_right - right_to_wrong`.
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
            raise ValueError(f"`second - first` must equal `wrong_to_right - right_to_wrong`, found {attempts}")
        return attempts

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "delta": self.delta}
