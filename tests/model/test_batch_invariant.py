"""Precision `exact`: sampler and learner compute the same bits, whatever else is in the batch."""

import pytest
import torch
import torch.nn.functional as F

from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.model import batch_invariant
from schoolhouse.model.batch_invariant import blocked_attention, check_row_invariance, make_batch_invariant
from schoolhouse.policy.policy import Policy
from schoolhouse.types import NAN, Key, Message, Problem, Rollout, SchoolError

PROMPTS = [list(range(20, 20 + n)) for n in (3, 40, 126, 9)]  # 126 is just less than a block of keys


@pytest.fixture
def policy(conversation, tiny_config):
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size, max_position_embeddings=512)
    return Policy.create(config, conversation, precision="exact")


def make_group_prompts(prompts=PROMPTS, samples=4, seed=0):
    return [
        Rollout(Problem(str(p), (Message("user", "?"),), ""), Key(seed, "t", 0, p, g), tuple(ids), (False,) * len(ids),
                (NAN,) * len(ids))
        for p, ids in enumerate(prompts)
        for g in range(samples)
    ]  # fmt: skip


def bits(rollouts):
    return [(r.tokens, r.logprob[r.turns[0] :]) for r in rollouts]


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("length", [1, 5, 128, 200])
def test_blocked_attention_is_causal_attention(heads, kv_heads, length):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, heads, length, 8), *torch.randn(2, 2, kv_heads, length, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(blocked_attention(q, k, v, torch.zeros(2, dtype=torch.long)), expected, atol=1e-6)


@pytest.mark.parametrize("length", [7, 129, 260])
def test_a_single_query_gets_the_same_bits_as_among_all(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, length, 8)
    whole = blocked_attention(q, k, v, torch.zeros(2, dtype=torch.long))
    for t in range(0, length, 5):
        alone = blocked_attention(q[:1, :, t : t + 1], k[:1, :, : t + 1], v[:1, :, : t + 1], torch.tensor([t]))
        assert torch.equal(alone[0, :, 0], whole[0, :, t])


@pytest.mark.parametrize("seed", range(3))
def test_a_rollout_has_the_same_bits_alone_among_others_and_in_few_slots(policy, seed):
    prompts = make_group_prompts(seed=seed)
    together = policy.extend(prompts, 40)
    assert len({r.tokens for r in together}) == len(together)
    assert bits(policy.extend(prompts, 40, num_slots=3)) == bits(together)
    assert bits(policy.extend(prompts[::-1], 40)) == bits(together[::-1])
    assert bits([policy.extend([prompt], 40)[0] for prompt in prompts]) == bits(together)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_sampler_and_learner_are_equal(policy, temperature):
    rollouts = policy.extend(make_group_prompts(), 40, temperature=temperature)
    for rollout, scored in zip(rollouts, policy.score(rollouts, temperature), strict=True):
        start = rollout.turns[0]
        assert list(rollout.logprob[start:]) == scored.logprob[start:].tolist()
    sampled, advantage = [r.logprob for r in rollouts], [[1.0] * len(r) for r in rollouts]
    batches = pack(rollouts, token_mean(rollouts), microbatch_tokens=300, sampled=sampled, advantage=advantage)
    assert len(batches) > 3
    assert policy.update(batches, policy_gradient(), 1e-3, temperature=temperature)["logprob_gap"] == 0.0


def test_scores_are_those_of_float32_up_to_rounding(policy, conversation):
    float32_policy = Policy.create(policy.decoder.config, conversation, precision="float32")
    rollouts = policy.extend(make_group_prompts(), 20)
    for exact, expected in zip(policy.score(rollouts), float32_policy.score(rollouts), strict=True):
        assert exact.logprob == pytest.approx(expected.logprob, abs=1e-5)


def test_products_that_depend_on_the_batch_are_an_error(policy, monkeypatch):
    linear = F.linear
    monkeypatch.setattr(batch_invariant.F, "linear", lambda x, w: linear(x, w) + 1e-7 * len(x))
    with pytest.raises(SchoolError, match="`exact` is impossible here"):
        check_row_invariance(policy.decoder)


def test_other_models_than_our_decoder_are_an_error():
    with pytest.raises(SchoolError, match="works only for Llama, Qwen2, Qwen3 and Mistral"):
        make_batch_invariant(torch.nn.Linear(8, 8))
