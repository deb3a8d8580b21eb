"""The decoder and transformers load each other's checkpoints with the same logits. Unsupported keys are errors."""

import json
import os
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.config import ARCHITECTURES, ModelConfig, model_config_to_json, parse_model_config
from schoolhouse.model.decoder import Decoder, init_weights
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
    packed = PackedAttention([len(tokens)])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor(tokens), packed.positions, packed))


def small_config(model_type: str = "qwen3", **changes) -> ModelConfig:
    qkv_bias, qk_norm = ARCHITECTURES[model_type]
    sizes: dict[str, Any] = {**SMALL, "head_dim": 12, **changes}
    return ModelConfig(**sizes, model_type=model_type, qkv_bias=qkv_bias, qk_norm=qk_norm)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_transformers_gives_the_same_logits(tmp_path, model_type, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{CLASSES[model_type]}Config")(**SMALL, tie_word_embeddings=tied)
    hf_model = getattr(transformers, f"{CLASSES[model_type]}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases start at 0 and norms at 1: change them, or a missing one would not be noticed
        for weight in hf_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    hf_model.save_pretrained(tmp_path)

    tokens = torch.randint(0, 61, (19,)).tolist()
    with torch.no_grad():
        expected = hf_model(torch.tensor([tokens])).logits[0]
    assert (logits_of(load_decoder(tmp_path), tokens) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_a_saved_decoder_with_the_same_logits(tmp_path, model_type, tied):
    transformers = pytest.importorskip("transformers")
    decoder = Decoder(small_config(model_type, tie_word_embeddings=tied))
    init_weights(decoder, torch.Generator().manual_seed(1))
    save_decoder(decoder, tmp_path, eos_id=0, pad_id=1)

    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 61, (23,)).tolist()
    with torch.no_grad():
        expected = hf_model(torch.tensor([tokens])).logits[0]
    assert type(hf_model).__name__ == f"{CLASSES[model_type]}ForCausalLM"
    assert (logits_of(decoder, tokens) - expected).abs().max() < 1e-5


def test_packed_sequences_do_not_attend_to_each_other():
    decoder = Decoder(small_config())
    init_weights(decoder, torch.Generator().manual_seed(2))
    sequences = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    packed = PackedAttention([len(s) for s in sequences])
    with torch.no_grad():
        together = decoder(torch.tensor([t for s in sequences for t in s]), packed.positions, packed)
    start = 0
    for sequence in sequences:
        alone = PackedAttention([len(sequence)])
        with torch.no_grad():
            expected = decoder(torch.tensor(sequence), alone.positions, alone)
        assert torch.allclose(together[start : start + len(sequence)], expected, atol=1e-6)
        start += len(sequence)


def test_later_tokens_do_not_change_earlier_logits():
    decoder = Decoder(small_config())
    init_weights(decoder, torch.Generator().manual_seed(3))
    assert torch.allclose(logits_of(decoder, [1, 2, 3, 4])[:3], logits_of(decoder, [1, 2, 3, 60])[:3], atol=1e-6)


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope_type", {"rope_type": "dynamic", "factor": 4.0}),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("quantization_config", {"bits": 4}),
        ("layer_types", ["sliding_attention", "full_attention"]),
    ],
)
def test_an_unsupported_config_value_is_an_error_that_names_the_key(key, value):
    changes = {"rope_parameters": value} if key == "rope_type" else {key: value}
    config = {**model_config_to_json(small_config("llama")), **changes}
    with pytest.raises(SchoolError, match=key):
        parse_model_config(config)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_config_comes_back_from_json(model_type):
    config = small_config(model_type, rope_theta=5e5)
    assert parse_model_config(json.loads(json.dumps(model_config_to_json(config)))) == config


@pytest.mark.parametrize(
    "rope_keys",
    [
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_rope_theta_is_found_wherever_transformers_looks(rope_keys):
    assert parse_model_config({**model_config_to_json(small_config("llama")), **rope_keys}).rope_theta == 5e5


def test_an_unsupported_rope_parameter_is_an_error():
    config = model_config_to_json(small_config("llama"))
    with pytest.raises(SchoolError, match="factor: 2.0"):
        parse_model_config({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "linear"},
        {"rope_type": "yarn", "factor": -4.0},
        {"type": "linear", "factor": "two"},
    ],
)
def test_a_rope_scaling_that_cannot_be_is_an_error_that_names_the_key(rope):
    config = {**model_config_to_json(small_config("llama")), "rope_parameters": None, "rope_scaling": rope}
    with pytest.raises(SchoolError, match=r"config.json: `rope_scaling\.\w+: .*positive number"):
        parse_model_config(config)


def test_an_older_config_with_plain_rope_theta_is_read():
    config = model_config_to_json(small_config("llama"))
    del config["rope_parameters"]
    assert parse_model_config({**config, "rope_theta": 123.0, "rope_scaling": None}).rope_theta == 123.0
