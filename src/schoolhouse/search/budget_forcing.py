"""Thoughts of a given length, and repeated attempts: budget forcing and sequential revision.

Budget forcing: Muennighoff et al. 2025, arXiv 2501.19393 (s1). The end of a thought that is too short is removed, and a
word is appended that makes the thought continue. A thought that is too long is closed. Sequential revision: Snell et
al. 2024, arXiv 2408.03314: further attempts, each of which reads the attempts before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import END_THINK
from schoolhouse.policy.interface import Generator
from schoolhouse.search.thoughts import extend
from schoolhouse.types import REVISION_REQUEST, Message, Rollout, SchoolError


@dataclass(frozen=True)
class BudgetResult:
    """An answer, and the tokens that were sampled for it, removed ones included."""

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
    """One answer of at most `answer_tokens` to each prompt, behind a thought of `min_think` to `max_think` tokens.

    `wait_text` counts as part of the thought. The thought is opened by a prefill. A turn that ends within the thought
    counts as an early end of the thought. Raises SchoolError where `wait_text` may not fit between the bounds.
    """
    conversation = policy.conversation
    wait_ids = conversation.tokenizer.encode(wait_text)
    if min_think and not wait_ids:
        raise SchoolError("`wait_text` is empty: give a word that makes a thought continue, such as `Wait`")
    if min_think and min_think + len(wait_ids) - 1 > max_think:
        raise SchoolError(
            f"`wait_text` takes {len(wait_ids)} tokens, which do not fit between `min_think` {min_think} and "
            f"`max_think` {max_think}: raise `max_think` to {min_think + len(wait_ids) - 1}, or lower `min_think`"
        )
    end_tokens = len(conversation.tokenizer.encode(END_THINK, parse_special=True))
    thinking = {at: BudgetResult(conversation.prefill_thought(prompt, ""), 0) for at, prompt in enumerate(prompts)}
    thought: dict[int, BudgetResult] = {}
    while thinking:
        room = [max_think - conversation.thought_length(result.rollout) + end_tokens for result in thinking.values()]
        prefixes = [result.rollout for result in thinking.values()]
        extended = extend(policy, prefixes, room, temperature, (END_THINK,))
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
    """The rollout up to `end`. Its last turn stays open, even where nothing of it is left."""
    return replace(rollout.truncate(end), turns=rollout.turns)


def max_forced_tokens(conversation: Conversation, max_think: int, answer_tokens: int) -> int:
    """The most tokens that a forced thought and its answer can take, removed ends included.

    Every removed end is followed by a word of at least one token.
    """
    end_tokens = len(conversation.tokenizer.encode(END_THINK, parse_special=True))
    return max_think + (max_think + 1) * end_tokens + answer_tokens


def _answer(
    policy: Generator, results: Sequence[BudgetResult], answer_tokens: int, temperature: float
) -> list[BudgetResult]:
    """The results, each with the answer behind its thought."""
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
    """`rounds` attempts at each problem, each behind the attempts before it; fewer where the model has no room."""
    request = (Message("user", instruction),)
    chains = [[rollout] for rollout in extend(policy, prompts, max_new_tokens, temperature)]
    for _ in range(rounds - 1):
        next_prompts = [policy.conversation.append_messages(chain[-1], request) for chain in chains]
        fitting = [at for at, prompt in enumerate(next_prompts) if len(prompt) + max_new_tokens <= policy.max_seq_len]
        attempts = extend(policy, [next_prompts[at] for at in fitting], max_new_tokens, temperature)
        for at, rollout in zip(fitting, attempts, strict=True):
            chains[at].append(rollout)
    return chains
