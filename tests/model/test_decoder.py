"""Our decoder is theirs: same names, same logits, both ways; what it does not implement it refuses by name."""

import json
import os
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.decoder import (
    ARCHITECTURES,
    Decoder,
    ModelConfig,
    init_weights,
    model_config_to_json,
    parse_model_config,
)
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.types import SchoolError

SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def logits_of(decoder, tokens):
    memory = PackedAttention([len(tokens)])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor(tokens), memory.positions, memory))


def small_shape(family: str = "qwen3", **changes) -> ModelConfig:
    bias, norm = ARCHITECTURES[family]
    sizes: dict[str, Any] = {**SMALL, "head_dim": 12, **changes}
    return ModelConfig(**sizes, model_type=family, qkv_bias=bias, qk_norm=norm)


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_written_by_transformers_gives_the_same_logits(tmp_path, family, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{CLASSES[family]}Config")(**SMALL, tie_word_embeddings=tied)
    theirs = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases start at zero, norms at one: move them, or a missing one would not be seen
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(tmp_path)

    tokens = torch.randint(0, 61, (19,)).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert (logits_of(load_decoder(tmp_path), tokens) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_what_we_write_with_the_same_logits(tmp_path, family, tied):
    transformers = pytest.importorskip("transformers")
    ours = Decoder(small_shape(family, tie_word_embeddings=tied))
    init_weights(ours, torch.Generator().manual_seed(1))
    save_decoder(ours, tmp_path, eos_id=0, pad_id=1)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 61, (23,)).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert type(theirs).__name__ == f"{CLASSES[family]}ForCausalLM"
    assert (logits_of(ours, tokens) - expected).abs().max() < 1e-5


def test_packed_sequences_do_not_see_each_other():
    ours = Decoder(small_shape())
    init_weights(ours, torch.Generator().manual_seed(2))
    sequences = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    memory = PackedAttention([len(s) for s in sequences])
    with torch.no_grad():
        together = ours(torch.tensor([t for s in sequences for t in s]), memory.positions, memory)
    start = 0
    for sequence in sequences:
        alone = PackedAttention([len(sequence)])
        with torch.no_grad():
            expected = ours(torch.tensor(sequence), alone.positions, alone)
        assert torch.allclose(together[start : start + len(sequence)], expected, atol=1e-6)
        start += len(sequence)


def test_the_future_is_hidden():
    ours = Decoder(small_shape())
    init_weights(ours, torch.Generator().manual_seed(3))
    assert torch.allclose(logits_of(ours, [1, 2, 3, 4])[:3], logits_of(ours, [1, 2, 3, 60])[:3], atol=1e-6)


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("quantization_config", {"bits": 4}),
        ("final_logit_softcapping", 30.0),
        ("layer_types", ["sliding_attention", "full_attention"]),
    ],
)
def test_a_config_key_it_does_not_implement_is_refused_by_name(key, value):
    config = {**model_config_to_json(small_shape("llama")), key: value}
    with pytest.raises(SchoolError, match=key):
        parse_model_config(config)


def test_the_shape_survives_its_config():
    for family in ARCHITECTURES:
        shape = small_shape(family, rope_theta=5e5)
        assert parse_model_config(json.loads(json.dumps(model_config_to_json(shape)))) == shape


@pytest.mark.parametrize(
    "where",
    [
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_the_rope_is_found_wherever_transformers_looks(where):
    assert parse_model_config({**model_config_to_json(small_shape("llama")), **where}).rope_theta == 5e5


def test_a_rope_that_says_more_is_refused():
    config = model_config_to_json(small_shape("llama"))
    with pytest.raises(SchoolError, match="`rope_parameters` sets factor"):
        parse_model_config({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}})


def test_an_older_config_with_plain_rope_theta_is_understood():
    config = model_config_to_json(small_shape("llama"))
    del config["rope_parameters"]
    assert parse_model_config({**config, "rope_theta": 123.0, "rope_scaling": None}).rope_theta == 123.0
