"""Exact mode: the same bits in sampler and learner, alone or among others."""

import pytest
import torch
import torch.nn.functional as F

from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.model import batch_invariant
from schoolhouse.model.batch_invariant import blocked_attention, check_row_invariance, make_batch_invariant
from schoolhouse.policy.policy import Policy
from schoolhouse.types import NAN, Key, Message, Problem, Rollout, SchoolError

PROMPTS = [list(range(20, 20 + n)) for n in (3, 40, 126, 9)]  # one ends just before a block of keys does


@pytest.fixture
def policy(conversation, tiny_shape):
    shape = tiny_shape(vocab_size=conversation.tokenizer.size, max_position_embeddings=512)
    return Policy.create(shape, conversation, precision="exact")


def prefixes(prompts, samples=4, seed=0):
    return [
        Rollout(Problem(str(p), (Message("user", "?"),), ""), Key(seed, "t", 0, p, g), tuple(ids), (False,) * len(ids),
                (NAN,) * len(ids))
        for p, ids in enumerate(prompts)
        for g in range(samples)
    ]  # fmt: skip


def bits(rollouts):
    return [(r.tokens, r.logprob[r.turns[0] :]) for r in rollouts]


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("length", [1, 5, 128, 200])
def test_attention_in_blocks_is_causal_attention(heads, key_heads, length):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, heads, length, 8), *torch.randn(2, 2, key_heads, length, 8)
    own = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(blocked_attention(q, k, v, torch.zeros(2, dtype=torch.long)), own, atol=1e-6)


@pytest.mark.parametrize("length", [7, 129, 260])
def test_a_query_by_itself_gets_the_bits_it_gets_among_all(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, length, 8)
    together = blocked_attention(q, k, v, torch.zeros(2, dtype=torch.long))
    for t in range(0, length, 5):
        alone = blocked_attention(q[:1, :, t : t + 1], k[:1, :, : t + 1], v[:1, :, : t + 1], torch.tensor([t]))
        assert torch.equal(alone[0, :, 0], together[0, :, t])


@pytest.mark.parametrize("seed", range(3))
def test_a_rollout_is_the_same_to_the_bit_alone_among_others_and_in_few_slots(policy, seed):
    asked = prefixes(PROMPTS, seed=seed)
    together = policy.extend(asked, 40)
    assert len({r.tokens for r in together}) == len(together)
    assert bits(policy.extend(asked, 40, slots=3)) == bits(together)
    assert bits(policy.extend(asked[::-1], 40)) == bits(together[::-1])
    assert bits([policy.extend([rollout], 40)[0] for rollout in asked]) == bits(together)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_and_learned_log_probabilities_differ_by_nothing(policy, temperature):
    rollouts = policy.extend(prefixes(PROMPTS), 40, temperature=temperature)
    for rollout, scored in zip(rollouts, policy.score(rollouts, temperature), strict=True):
        start = rollout.turns[0]
        assert list(rollout.logprob[start:]) == scored.logprob[start:].tolist()
    sampled, advantage = [r.logprob for r in rollouts], [[1.0] * len(r) for r in rollouts]
    batches = pack(rollouts, token_mean(rollouts), microbatch_tokens=300, sampled=sampled, advantage=advantage)
    assert len(batches) > 3
    assert policy.update(batches, policy_gradient(), 1e-3, temperature=temperature)["logprob_gap"] == 0.0


def test_it_is_the_same_model_as_in_float32(policy, conversation):
    plain = Policy.create(policy.decoder.config, conversation, precision="float32")
    rollouts = policy.extend(prefixes(PROMPTS), 20)
    for ours, theirs in zip(policy.score(rollouts), plain.score(rollouts), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_a_machine_whose_products_depend_on_the_batch_is_refused(policy, monkeypatch):
    linear = F.linear
    monkeypatch.setattr(batch_invariant.F, "linear", lambda x, w: linear(x, w) + 1e-7 * len(x))
    with pytest.raises(SchoolError, match="`exact` is impossible here"):
        check_row_invariance(policy.decoder)


def test_a_model_that_is_not_ours_to_change_is_refused():
    with pytest.raises(SchoolError, match="Mistral decoders alone"):
        make_batch_invariant(torch.nn.Linear(8, 8))
