"""Thinking as long as told, and thinking again: budget forcing and sequential revision.

Budget forcing: Muennighoff et al. 2025, arXiv 2501.19393 (s1). A thought that ends too early loses its end and gets a
word that makes it go on; one that runs too long is closed. Sequential revision: Snell et al. 2024, arXiv 2408.03314:
further attempts, each of which reads those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import END_THINK
from schoolhouse.policy.interface import Generator
from schoolhouse.search.thoughts import Generator, extend
from schoolhouse.types import REVISION_REQUEST, Message, Rollout, SchoolError


@dataclass(frozen=True)
class BudgetResult:
    """An answer, and the tokens that were sampled for it: those that were taken back too."""

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
    """One answer to each, with a thought of `least` to `most` tokens (`wait` counts) and at most `answer` behind it.

    The thought is opened for the policy; an end of the turn within it is taken for an early end. Raises SchoolError
    where `wait` may not fit between the bounds.
    """
    say = policy.conversation
    word, end_mark = say.tokenizer.encode(wait_text), len(say.tokenizer.encode(END_THINK, parse_special=True))
    if min_think and not word:
        raise SchoolError("`wait` is empty: give the word that makes a thought go on")
    if min_think and min_think + len(word) - 1 > max_think:
        raise SchoolError(
            f"`wait` takes {len(word)} tokens: let there be as many between `least` {min_think} and `most` {max_think}"
        )
    going = {at: BudgetResult(say.prefill_thought(prefix, ""), 0) for at, prefix in enumerate(prompts)}
    done: dict[int, BudgetResult] = {}
    while going:
        room = [max_think - say.thought_length(spent.rollout) + end_mark for spent in going.values()]
        said = extend(policy, [spent.rollout for spent in going.values()], room, temperature, (END_THINK,))
        after: dict[int, BudgetResult] = {}
        for (at, before), rollout in zip(going.items(), said, strict=True):
            spent = BudgetResult(rollout, before.tokens + len(rollout) - len(before.rollout))
            start, end, closed = say.thought_span(rollout)
            thought = min(end, start + max_think)
            if thought - start < min_think and thought - start + len(word) <= max_think:
                after[at] = replace(spent, rollout=_cut(rollout, thought).prefill(word))
            elif closed and thought == end:
                done[at] = spent
            else:
                done[at] = replace(spent, rollout=say.close_thought(_cut(rollout, thought)))
        going = after
    return _answered(policy, [done[at] for at in range(len(prompts))], answer_tokens, temperature)


def _cut(rollout: Rollout, end: int) -> Rollout:
    """Up to there, within its last turn, even where nothing is left of it (a prompt that opens the thought)."""
    return replace(rollout.truncate(end), turns=rollout.turns)


def max_forced_tokens(conversation: Conversation, max_think: int, answer_tokens: int) -> int:
    """The most tokens that a thought of at most `most` and its answer can take, with ends that are taken back.

    Every end that is taken back is followed by a word of a token or more.
    """
    end_mark = len(conversation.tokenizer.encode(END_THINK, parse_special=True))
    return max_think + (max_think + 1) * end_mark + answer_tokens


def _answered(policy: Generator, spent: Sequence[BudgetResult], answer: int, temperature: float) -> list[BudgetResult]:
    """What stands behind the thought, said to its end."""
    stop = policy.conversation.stop_ids
    late = [at for at, one in enumerate(spent) if one.rollout.tokens[-1] not in stop]
    begun = [
        spent[at].rollout if spent[at].rollout.finish_reason == "prefill" else spent[at].rollout.prefill(())
        for at in late
    ]
    whole = list(spent)
    for at, before, after in zip(late, begun, extend(policy, begun, answer, temperature), strict=True):
        whole[at] = BudgetResult(after, spent[at].tokens + len(after) - len(before))
    return whole


def revise(
    policy: Generator,
    prompts: Sequence[Rollout],
    rounds: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    instruction: str = REVISION_REQUEST,
) -> list[list[Rollout]]:
    """`rounds` attempts at each problem, every one behind those before it; fewer where the model has no room."""
    request = (Message("user", instruction),)
    chains = [[rollout] for rollout in extend(policy, prompts, max_new_tokens, temperature)]
    for _ in range(rounds - 1):
        asked = [policy.conversation.append_messages(chain[-1], request) for chain in chains]
        fits = [at for at, prefix in enumerate(asked) if len(prefix) + max_new_tokens <= policy.max_seq_len]
        said = extend(policy, [asked[at] for at in fits], max_new_tokens, temperature)
        for at, rollout in zip(fits, said, strict=True):
            chains[at].append(rollout)
    return chains
