"""Frequencies of rotary embeddings equal those of transformers, for every type that our decoder computes."""

import copy

import pytest
import torch

from schoolhouse.model.rope import ROPE_TYPES, rope_frequencies

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS = [
    {},
    {"rope_type": "linear", "factor": 2.5},
    {**LLAMA3, "original_max_position_embeddings": 8192},
    {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 512},
    YARN,
    {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    {**YARN, "truncate": False},
]


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_frequencies_equal_those_of_transformers(scaling, theta):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", **copy.deepcopy(scaling), "rope_theta": theta}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope
    )
    theirs = LlamaRotaryEmbedding(config)
    frequency, magnitude = rope_frequencies(64, theta, scaling, 131072)
    torch.testing.assert_close(frequency, theirs.inv_freq, rtol=2e-6, atol=0)
    assert magnitude == pytest.approx(theirs.attention_scaling, rel=1e-6)


def test_every_type_is_compared():
    assert {scaling.get("rope_type", "default") for scaling in SCALINGS} == set(ROPE_TYPES)


def test_without_a_length_of_pretraining_the_context_of_the_model_is_taken():
    given, _ = rope_frequencies(64, 1e4, {**LLAMA3, "original_max_position_embeddings": 4096}, 131072)
    taken, _ = rope_frequencies(64, 1e4, LLAMA3, 4096)
    assert torch.equal(given, taken)
