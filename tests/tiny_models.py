"""Tiny decoders, prompts and a tokenizer for tests of the model and the policy. All float32, all on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.decoder import Decoder, init_weights
from schoolhouse.policy.policy import Policy
from schoolhouse.types import NAN, Key, Message, Problem, Rollout


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """The config of a model with two layers; keywords replace its values."""

    def make(**changes: Any) -> ModelConfig:
        values: dict[str, Any] = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        }
        return ModelConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_decoder(tiny_config: Callable[..., ModelConfig]) -> Callable[..., Decoder]:
    """A random decoder with large embeddings, so that attention visibly changes its logits."""

    def make(seed: int = 0, **changes: Any) -> Decoder:
        decoder = Decoder(tiny_config(**changes))
        init_weights(decoder, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            decoder.model.embed_tokens.weight.mul_(20)
            decoder.lm_head.weight.mul_(12)
        return decoder

    return make


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., list[Rollout]]:
    """Prompts as rollouts, one for each list of ids; the i-th is sample i."""

    def make(prompts: Sequence[Sequence[int]], seed: int = 0) -> list[Rollout]:
        problem = Problem("p", (Message("user", "?"),), "")
        return [
            Rollout(problem, Key(seed, "test", sample=i), tuple(ids), (False,) * len(ids), (NAN,) * len(ids))
            for i, ids in enumerate(prompts)
        ]

    return make


@pytest.fixture(scope="session")
def conversation() -> Conversation:
    return Conversation(train_tokenizer(["what is 3 and 4? it is 7.\n"] * 4, 270))


@pytest.fixture
def policy(conversation: Conversation, tiny_config: Callable[..., ModelConfig]) -> Policy:
    """A fresh policy, the same for every test."""
    return Policy.create(tiny_config(vocab_size=conversation.tokenizer.vocab_size), conversation, precision="float32")
