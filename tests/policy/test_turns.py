"""Several turns in a kept cache: tools and users between turns, thinking budgets, texts that end a turn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.data.tokenizer import END_THINK
from schoolhouse.model.batch_invariant import InvariantSlotKVCache
from schoolhouse.policy.policy import Policy
from schoolhouse.types import SchoolError

PROMPTS = [[20, 21, 22], [30, 31], [20, 21, 22], [40, 41, 42, 43, 44], [50]]


@pytest.fixture(params=["float32", "exact"])
def policy(request, conversation, tiny_config):
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size, head_dim=32)
    policy = Policy.create(config, conversation, precision=request.param)
    with torch.no_grad():
        policy.decoder.get_parameter("model.embed_tokens.weight").mul_(20)
    return policy


def two_tool_results(rollout):
    """The next turn: two results of a tool, longer ones after longer prompts; then none."""
    if rollout.key.turn == 2:
        return None
    return rollout.append_context([60 + rollout.key.turn] * (1 + len(rollout) % 4)), 6


def extend_in_separate_calls(policy, rollouts):
    extended = policy.extend(rollouts, 7)
    while (following := [two_tool_results(rollout) for rollout in extended]) != [None] * len(extended):
        extended = policy.extend([prefix for prefix, _ in following], 6)
    return extended


@pytest.mark.parametrize("num_slots", [2, 512])
def test_turns_in_a_kept_cache_equal_separate_calls(policy, make_prompts, num_slots):
    kept = policy.extend(make_prompts(PROMPTS), 7, next_turn=two_tool_results, max_total_tokens=40, num_slots=num_slots)
    for rollout, expected in zip(kept, extend_in_separate_calls(policy, make_prompts(PROMPTS)), strict=True):
        assert (rollout.tokens, rollout.loss_mask, rollout.turns) == (
            expected.tokens,
            expected.loss_mask,
            expected.turns,
        )
        assert (rollout.key, rollout.finish_reason, len(rollout.turns)) == (expected.key, expected.finish_reason, 3)
        tolerance = 0.0 if policy.slot_cache is InvariantSlotKVCache else 1e-4
        assert rollout.logprob == pytest.approx(expected.logprob, abs=tolerance, rel=0.0, nan_ok=True)


def test_no_token_is_read_twice(policy, make_prompts, monkeypatch):
    tokens_read = []
    forward = policy.decoder.forward
    monkeypatch.setattr(
        policy.decoder, "forward", lambda tokens, *rest: tokens_read.append(len(tokens)) or forward(tokens, *rest)
    )
    rollouts = policy.extend(make_prompts(PROMPTS), 7, next_turn=two_tool_results, max_total_tokens=40)
    prompt_tokens = sum(map(len, {tuple(prompt) for prompt in PROMPTS}))
    later_tokens = sum(len(rollout) - len(prompt) - 1 for rollout, prompt in zip(rollouts, PROMPTS, strict=True))
    assert sum(tokens_read) == prompt_tokens + later_tokens


def test_a_turn_for_which_no_tokens_are_left_does_not_begin(policy, make_prompts):
    rollouts = policy.extend(make_prompts(PROMPTS), 7, next_turn=two_tool_results, max_total_tokens=9)
    for rollout, prompt in zip(rollouts, PROMPTS, strict=True):
        assert len(rollout) - len(prompt) <= 9
        assert rollout.loss_mask[-1]


@pytest.mark.fault("ids change on the way")
def test_a_next_turn_cannot_change_tokens_in_the_cache(policy, make_prompts):
    (other,) = make_prompts([[1, 2, 3, 4]])
    with pytest.raises(SchoolError, match="`next_turn` changed tokens of a rollout of problem p"):
        policy.extend(make_prompts(PROMPTS), 4, next_turn=lambda rollout: (other, 3), max_total_tokens=20)


def test_a_thought_longer_than_its_budget_is_closed(policy, make_prompts):
    think, end_think = (policy.conversation.tokenizer.special_tokens[text] for text in ("<think>", END_THINK))
    prompts = [prompt.append_sampled([think], [0.0], "length", 0).prefill(()) for prompt in make_prompts(PROMPTS)]
    unlimited = policy.extend(prompts, 12, stop_ids=())
    limited = policy.extend(prompts, 12, stop_ids=(), thinking_budget=5)
    closed = 0
    for rollout, before, prompt in zip(limited, unlimited, prompts, strict=True):
        start = len(prompt)
        assert rollout.tokens[: start + 5] == before.tokens[: start + 5]
        assert (len(rollout), rollout.turns, rollout.finish_reason) == (start + 12, prompt.turns, "length")
        assert rollout.last_turn() == rollout.tokens[start - 1 :]
        if end_think not in before.tokens[start : start + 5]:
            closed += 1
            assert rollout.tokens[start + 5] == end_think
            assert not rollout.loss_mask[start + 5]
            assert policy.conversation.parse_completion(rollout).thought is not None
            assert policy.conversation.thought_length(rollout) == 5
        else:
            assert rollout.tokens == before.tokens
    assert closed >= 4


def test_a_thinking_budget_needs_one_length_for_all(policy, make_prompts):
    with pytest.raises(SchoolError, match="one `max_new_tokens` for all"):
        policy.extend(make_prompts(PROMPTS), [4] * 5, thinking_budget=2)


def test_a_stop_string_ends_a_turn_however_it_is_split_into_tokens(policy, make_prompts):
    decode = policy.conversation.tokenizer.decode
    unlimited = policy.extend(make_prompts(PROMPTS), 30, stop_ids=())
    text = decode(unlimited[0].tokens[3:])
    stop_string = next(text[i : i + 3] for i in range(8, 40) if text[i : i + 3].isascii())
    limited = policy.extend(make_prompts(PROMPTS), 30, stop_ids=(), stop_strings=[stop_string])
    assert limited[0].finish_reason == "stop"
    for rollout, before, prompt in zip(limited, unlimited, PROMPTS, strict=True):
        completion = rollout.tokens[len(prompt) :]
        assert completion == before.tokens[len(prompt) : len(rollout)]
        assert (stop_string in decode(completion)) == (rollout.finish_reason == "stop")
        assert stop_string not in decode(completion[:-1])
    with pytest.raises(SchoolError, match="a stop string is empty"):
        policy.extend(make_prompts(PROMPTS), 3, stop_strings=[""])


def test_candidates_belong_to_the_sampled_tokens_of_all_turns(policy, make_prompts):
    options = {"next_turn": two_tool_results, "max_total_tokens": 40, "num_candidates": 3}
    for rollout in policy.extend(make_prompts(PROMPTS), 7, **options):
        (batch,) = pack([rollout], token_mean([rollout]))
        assert batch.candidates is not None
        logprob = policy.batch_scores(batch, 1.0).candidates.detach()
        assert torch.allclose(logprob, batch.candidates[1], atol=1e-4)
        assert rollout.candidates.ids.shape == (sum(rollout.loss_mask), 3)
        shorter = rollout.truncate(rollout.turns[1])
        assert np.array_equal(shorter.candidates.ids, rollout.candidates.ids[: sum(shorter.loss_mask)])
        assert rollout.with_prompt([1, 2]).candidates is None


def test_candidates_without_a_row_for_each_sampled_token_are_an_error(policy, make_prompts):
    (rollout,) = policy.extend(make_prompts(PROMPTS)[:1], 3, num_candidates=3)
    assert rollout.append_sampled([5], [-1.0], "stop", 0).candidates is None
    with pytest.raises(ValueError, match=r"candidates has \d rows, but 0 tokens are in the loss mask; give one row"):
        replace(rollout, loss_mask=(False,) * len(rollout))
