"""In bfloat16, rounding of logits must not look like a change of the policy: sampler, learner and adapter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schoolhouse.algorithms.losses import clipped_surrogate, ratio_stats
from schoolhouse.algorithms.packing import pack, sequence_mean
from schoolhouse.data.chat import Conversation
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.hf_adapter import load_adapter
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem, Rollout

CLIP = 3e-4
"""The clip range of GSPO."""


def llama_adapter(config: Any, folder: Path) -> Any:
    """A random model of transformers, with our attention."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        name: getattr(config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    hf_config = transformers.AutoConfig.for_model("llama", **sizes, num_key_value_heads=2, tie_word_embeddings=False)
    transformers.AutoModelForCausalLM.from_config(hf_config).save_pretrained(folder)
    return load_adapter(folder)


@pytest.fixture(params=["decoder", "adapter"])
def policy(request: Any, tiny_config: Any, conversation: Conversation, tmp_path: Path) -> Policy:
    """A bfloat16 policy whose logits reach 16 to 32, where bfloat16 numbers are .125 apart."""
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
    model: Any = Decoder(config) if request.param == "decoder" else llama_adapter(config, tmp_path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.5 if weight.shape[0] == config.vocab_size else 0.2, generator=generator)
    return Policy(model, conversation, "bfloat16")


def sample(policy: Policy, temperature: float) -> list[Rollout]:
    prompts = [
        policy.conversation.prompt_rollout(Problem(str(i), (Message("user", f"{i}?"),), ""), Key(0, "t", 0, i, g))
        for i in range(8)
        for g in range(4)
    ]
    return policy.extend(prompts, 24, temperature=temperature)


def clip_fraction(policy: Policy, rollouts: list[Rollout], old: list[Any]) -> float:
    """The fraction of sequences outside of GSPO's clip range, as an update measures it."""

    def metrics(batch: Any, scores: Any) -> dict[str, float]:
        return ratio_stats(batch, scores, CLIP, CLIP, "sequence")

    fractions = 0.0
    for sign in (1.0, -1.0):  # an advantage above 0 is clipped above the range, an advantage below 0 below the range
        advantage = [[sign] * len(rollout) for rollout in rollouts]
        batches = pack(rollouts, sequence_mean(rollouts), 10_000, advantage=advantage, old=old)
        loss = clipped_surrogate(CLIP, CLIP, "sequence")
        stats = policy.update(batches, loss, 0.0, temperature=4.0, metrics_fn=metrics)
        fractions += stats["clip_frac_low"] + stats["clip_frac_high"]
    return fractions


def output_weight(policy: Policy) -> torch.Tensor:
    model: Any = policy.decoder
    return model.lm_head.weight if isinstance(model, Decoder) else model.hf_model.lm_head.weight


def test_gspo_clips_nothing_while_the_policy_is_almost_unchanged(policy: Policy):
    """The head grows by a factor of 1 + 2e-5. The exact sequence ratios then lie within 1 +- 1e-4."""
    rollouts = sample(policy, 4.0)
    old = [scores.logprob for scores in policy.score(rollouts, 4.0)]
    assert clip_fraction(policy, rollouts, old) == 0.0
    with torch.no_grad():
        output_weight(policy).mul_(1 + 2e-5)
    changes = [
        float(np.mean((after.logprob - before)[list(rollout.loss_mask)]))
        for rollout, before, after in zip(rollouts, old, policy.score(rollouts, 4.0), strict=True)
    ]
    assert max(map(abs, changes)) < 1e-4
    assert clip_fraction(policy, rollouts, old) == 0.0


def test_sampler_and_learner_compute_the_log_probabilities_of_float32_logits(policy: Policy):
    """bfloat16 logits of 16 to 32 would change the average log-probability by more than .01."""
    rollouts = sample(policy, 1.0)
    for rollout, scores in zip(rollouts, policy.score(rollouts), strict=True):
        mask, tokens = list(rollout.loss_mask), torch.tensor(rollout.tokens)
        packed = policy.packed_attention([len(rollout)], policy.device)
        with torch.no_grad():
            with policy.autocast():
                hidden = policy.decoder(tokens, packed.positions, packed)
            logits = policy.decoder.project(hidden.bfloat16().float())  # outside of autocast
        assert logits.abs().max() > 16
        expected = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0].numpy()
        for found in (np.array(rollout.logprob), scores.logprob):
            assert np.abs(found[1:] - expected)[mask[1:]].mean() < 0.005
