"""A policy samples from packed weights: the bits do not depend on the batch, and changed weights are packed again."""

import shutil

import pytest
import torch

from schoolhouse.model.lora import Adapter, adapter_tensors, add_adapter, lora_layers, other_adapter, target_layers
from schoolhouse.model.packed_decoder import PackedDecoder
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem, SchoolError

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


def sample(policy, samples=6):
    problem = Problem("p", (Message("user", "1 + 1?"),), "2")
    return policy.extend(
        [policy.conversation.prompt_rollout(problem, Key(0, "t", 0, 0, i)) for i in range(samples)], 12
    )


def sampled_logprobs(rollouts):
    return [x for r in rollouts for x, sampled in zip(r.logprob, r.loss_mask, strict=True) if sampled]


@pytest.mark.parametrize(("weights", "gap"), [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.05)])
def test_the_learner_agrees_with_the_sampler(policy, weights, gap):
    policy.sampling_weights = weights
    rollouts = sample(policy)
    scores = [x for r, s in zip(rollouts, policy.score(rollouts), strict=True) for x in s.logprob[list(r.loss_mask)]]
    assert isinstance(policy._sampler(), PackedDecoder)
    assert torch.tensor(scores).sub(torch.tensor(sampled_logprobs(rollouts))).abs().mean() < gap


def test_a_rollout_has_the_same_bits_alone_and_among_others(tiny_config, conversation):
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size, head_dim=32)  # a width that the kernels take
    policy = Policy.create(config, conversation, precision="float32", device="cpu")
    policy.sampling_weights = "float32"
    together, (alone,) = sample(policy), sample(policy, 1)
    assert together[0].tokens == alone.tokens
    assert sampled_logprobs(together[:1]) == sampled_logprobs([alone])


def test_weights_that_change_are_sampled_from(policy):
    policy.sampling_weights = "float32"
    before = sampled_logprobs(sample(policy))
    with torch.no_grad():
        policy.decoder.lm_head.weight.mul_(2)
    assert sampled_logprobs(sample(policy)) != before


def test_packed_weights_with_precision_exact_are_an_error(tiny_config, conversation):
    policy = Policy.create(
        tiny_config(vocab_size=conversation.tokenizer.vocab_size), conversation, precision="exact", device="cpu"
    )
    policy.sampling_weights = "int8"
    with pytest.raises(SchoolError, match="sampling from int8 weights"):
        sample(policy)


def test_another_adapter_is_sampled_from_and_then_the_first_one_again(policy):
    adapter = Adapter(2, 32.0, target_layers(policy.decoder, "all"), "base", "")
    add_adapter(policy.decoder, adapter)
    policy.sampling_weights = "float32"
    without = sampled_logprobs(sample(policy))
    for _, layer in lora_layers(policy.decoder):
        torch.nn.init.normal_(layer.lora_A), torch.nn.init.normal_(layer.lora_B)
    first = sampled_logprobs(sample(policy))
    assert first != without
    with other_adapter(policy.decoder, None):
        assert sampled_logprobs(sample(policy)) == without
    tensors = {name: tensor.clone() for name, tensor in adapter_tensors(policy.decoder).items()}
    with other_adapter(policy.decoder, tensors):
        assert sampled_logprobs(sample(policy)) == first
    for tensor in tensors.values():
        tensor.zero_()
    with other_adapter(policy.decoder, tensors):
        assert sampled_logprobs(sample(policy)) == without
    assert sampled_logprobs(sample(policy)) == first
