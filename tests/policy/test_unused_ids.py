"""Ids without a token: the model has more rows of logits than its tokenizer has tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.data.chat import Conversation
from schoolhouse.model.decoder import ModelConfig
from schoolhouse.policy.logprobs import token_logprobs
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem, Rollout

ROWS = 200


@pytest.fixture
def wide(conversation: Conversation, tiny_config: Callable[..., ModelConfig]) -> Policy:
    """A policy whose unused rows are by far the likeliest."""
    policy = Policy.create(
        tiny_config(vocab_size=conversation.tokenizer.vocab_size + ROWS), conversation, precision="float32"
    )
    with torch.no_grad():
        policy.decoder.get_parameter("lm_head.weight")[conversation.tokenizer.vocab_size :] *= 100
    return policy


@pytest.fixture
def prompts(wide: Policy) -> list[Rollout]:
    problem = Problem("p", (Message("user", "what is 3 and 4?"),), "7")
    return [wide.conversation.prompt_rollout(problem, Key(0, "test", sample=i)) for i in range(8)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_id_without_a_token_is_never_sampled(wide: Policy, prompts: list[Rollout], temperature: float) -> None:
    rollouts = wide.extend(prompts, 20, temperature=temperature)
    assert max(token for rollout in rollouts for token in rollout.tokens) < wide.conversation.tokenizer.vocab_size


def test_the_learner_gives_the_same_probabilities(wide: Policy, prompts: list[Rollout]) -> None:
    rollouts = wide.extend(prompts, 20)
    for rollout, scores in zip(rollouts, wide.score(rollouts), strict=True):
        sampled = np.array(rollout.loss_mask)
        np.testing.assert_allclose(scores.logprob[sampled], np.array(rollout.logprob)[sampled], atol=1e-4)
        assert np.isfinite(scores.entropy).all()


def test_probabilities_of_a_text_leave_the_unused_ids_out(wide: Policy, prompts: list[Rollout]) -> None:
    size = wide.conversation.tokenizer.vocab_size
    for token in token_logprobs(wide, prompts[0].tokens, num_top=5)[1:]:
        assert all(i < size for i, _ in token.top_logprobs)


def test_unused_rows_get_no_gradient(wide: Policy, prompts: list[Rollout]) -> None:
    from schoolhouse.algorithms.packing import pack, token_mean

    rollouts = wide.extend(prompts, 8)
    batches = pack(rollouts, token_mean(rollouts), 4_096, advantage=[np.ones(len(r)) for r in rollouts])
    before = wide.decoder.get_parameter("lm_head.weight").detach().clone()
    wide.update(batches, policy_gradient(), 1e-2)
    changed = wide.decoder.get_parameter("lm_head.weight").ne(before).any(1)
    size = wide.conversation.tokenizer.vocab_size
    assert changed[:size].any()
    assert not changed[size:].any()


def test_a_model_without_unused_ids_is_not_masked(policy: Policy) -> None:
    assert policy.unused_ids is None
