"""Two kinds of search: budget forcing limits the length of thoughts, and sequential revision repeats attempts.

Budget forcing is the method of s1 (Muennighoff et al. 2025, arXiv 2501.19393). If a thought is too short, the tokens
that end the thought are removed, and a word such as "Wait" is appended, so that the thought continues. If a thought is
too long, the thought is closed. In sequential revision (Snell et al. 2024, arXiv 2408.03314) the policy makes several
attempts, and each attempt reads the attempts before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schoolhouse.data.chat import Conversation
from schoolhouse.policy.interface import Generator
from schoolhouse.search.thoughts import extend
from schoolhouse.types import REVISION_REQUEST, Message, Rollout, SchoolError


@dataclass(frozen=True)
class BudgetResult:
    """An answer, and the number of tokens that were sampled to produce the answer.

    Tokens that were sampled and then removed count too.
    """

    rollout: Rollout
    tokens: int


def budget_force(
    policy: Generator,
    prompts: Sequence[Rollout],
    min_think: int,
    max_think: int,
    answer_tokens: int,
    wait_text: str = "Wait",
    temperature: float = 1.0,
) -> list[BudgetResult]:
    """Sample one answer to each prompt, after a thought of `min_think` to `max_think` tokens.

    The answer has at most `answer_tokens` tokens. The tokens of `wait_text` count as tokens of the thought. The tag
    that opens the thought is not sampled, but prefilled. A turn that ends inside its thought counts as a thought that
    is too short. Raises SchoolError if `wait_text` might not fit between `min_think` and `max_think`.
    """
    conversation = policy.conversation
    wait_ids = conversation.tokenizer.encode(wait_text, continues=True)
    if min_think and not wait_ids:
        raise SchoolError("`wait_text` is empty: give a word that makes a thought continue, such as `Wait`")
    if min_think and min_think + len(wait_ids) - 1 > max_think:
        raise SchoolError(
            f"`wait_text` has {len(wait_ids)} tokens, which do not fit between `min_think` ({min_think}) and "
            f"`max_think` ({max_think}): raise `max_think` to {min_think + len(wait_ids) - 1}, or lower `min_think`"
        )
    end_tokens = len(conversation.end_thought_ids)
    thinking = {at: BudgetResult(conversation.prefill_thought(prompt, ""), 0) for at, prompt in enumerate(prompts)}
    thought: dict[int, BudgetResult] = {}
    while thinking:
        room = [max_think - conversation.thought_length(result.rollout) + end_tokens for result in thinking.values()]
        prefixes = [result.rollout for result in thinking.values()]
        extended = extend(policy, prefixes, room, temperature, (conversation.thought_format.end,))
        still_thinking: dict[int, BudgetResult] = {}
        for (at, before), rollout in zip(thinking.items(), extended, strict=True):
            result = BudgetResult(rollout, before.tokens + len(rollout) - len(before.rollout))
            start, end, closed = conversation.thought_span(rollout)
            end_of_thought = min(end, start + max_think)
            length = end_of_thought - start
            if length < min_think and length + len(wait_ids) <= max_think:
                still_thinking[at] = replace(result, rollout=_cut(rollout, end_of_thought).prefill(wait_ids))
            elif closed and end_of_thought == end:
                thought[at] = result
            else:
                thought[at] = replace(result, rollout=conversation.close_thought(_cut(rollout, end_of_thought)))
        thinking = still_thinking
    return _answer(policy, [thought[at] for at in range(len(prompts))], answer_tokens, temperature)


def _cut(rollout: Rollout, end: int) -> Rollout:
    """Cut a rollout at position `end`.

    The policy can continue the last turn, even if the cut removes all tokens of the turn.
    """
    return replace(rollout.truncate(end), turns=rollout.turns)


def max_forced_tokens(conversation: Conversation, max_think: int, answer_tokens: int) -> int:
    """Compute the largest number of tokens that `budget_force` can sample for one thought and its answer.

    The result includes tokens that are sampled and then removed. At least one token of `wait_text` is added after each
    removed end of a thought, so the number of removed ends is limited.
    """
    end_tokens = len(conversation.end_thought_ids)
    return max_think + (max_think + 1) * end_tokens + answer_tokens


def _answer(
    policy: Generator, results: Sequence[BudgetResult], answer_tokens: int, temperature: float
) -> list[BudgetResult]:
    """Sample an answer after each thought that has no answer yet."""
    stop_ids = policy.conversation.stop_ids
    unanswered = [at for at, result in enumerate(results) if result.rollout.tokens[-1] not in stop_ids]
    rollouts = [results[at].rollout for at in unanswered]
    prefixes = [rollout if rollout.finish_reason == "prefill" else rollout.prefill(()) for rollout in rollouts]
    answered = list(results)
    extended = extend(policy, prefixes, answer_tokens, temperature)
    for at, before, after in zip(unanswered, prefixes, extended, strict=True):
        answered[at] = BudgetResult(after, results[at].tokens + len(after) - len(before))
    return answered


def revise(
    policy: Generator,
    prompts: Sequence[Rollout],
    rounds: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    instruction: str = REVISION_REQUEST,
) -> list[list[Rollout]]:
    """Sample `rounds` attempts at each problem. An attempt follows the earlier attempts in the same conversation.

    If the model's context has no room for all attempts, a problem gets fewer attempts.
    """
    request = (Message("user", instruction),)
    chains = [[rollout] for rollout in extend(policy, prompts, max_new_tokens, temperature)]
    for _ in range(rounds - 1):
        next_prompts = [policy.conversation.append_messages(chain[-1], request) for chain in chains]
        fitting = [at for at, prompt in enumerate(next_prompts) if len(prompt) + max_new_tokens <= policy.max_seq_len]
        attempts = extend(policy, [next_prompts[at] for at in fitting], max_new_tokens, temperature)
        for at, rollout in zip(fitting, attempts, strict=True):
            chains[at].append(rollout)
    return chains
