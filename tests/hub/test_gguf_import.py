"""A GGUF file becomes a model folder that gives the same tokens; what cannot be read is named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schoolhouse.data.chat import Conversation
from schoolhouse.export.gguf import write_gguf
from schoolhouse.export.gguf_split import SPLITS, split_of
from schoolhouse.hub.gguf_import import import_gguf
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Key, Message, Problem, SchoolError

gguf = pytest.importorskip("gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"qk_norm": False, "rope_theta": 5e4},
    "llama with long context": {"model_type": "llama", "qk_norm": False, "rope_scaling": LLAMA3},
    "llama with linear scaling": {
        "model_type": "llama",
        "qk_norm": False,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "llama with YaRN": {
        "model_type": "llama",
        "qk_norm": False,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": {},
}
QUESTION = Message("user", "Start at 7. Add 5 and 12, don't stop.")


@pytest.fixture
def make_folder(conversation: Conversation, tmp_path: Path):
    """Saves a random model of a family. Its next token is a letter or digit: llama.cpp shows no part of a character."""

    def make(family: str) -> Path:
        size = conversation.tokenizer.vocab_size
        config = ModelConfig(size, 128, 96, 2, 4, 2, 32, max_position_embeddings=256, tie_word_embeddings=False)
        config = replace(config, **{"model_type": family, **FAMILIES[family]})
        model = Policy.create(config, conversation, precision="float32")
        with torch.no_grad():
            for weight in model.decoder.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
            assert isinstance(model.decoder, Decoder)
            others = [i for i in range(size) if not conversation.tokenizer.decode([i]).isalnum()]
            model.decoder.lm_head.weight[others] = 0
        model.save(tmp_path / "original")
        return tmp_path / "original"

    return make


def greedy(policy: Policy) -> tuple[int, ...]:
    prompt = policy.conversation.prompt_rollout(Problem("p", (QUESTION,), ""), Key(0, "t"))
    return policy.extend([prompt], 24, temperature=0.0)[0].tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_comes_back_with_the_same_weights_and_tokens(make_folder, tmp_path, family):
    original = make_folder(family)
    write_gguf(original, tmp_path / "model.gguf")
    (tmp_path / "imported").mkdir()
    import_gguf(tmp_path / "model.gguf", tmp_path / "imported")
    before, after = Policy.load(original, "float32"), Policy.load(tmp_path / "imported", "float32")
    assert isinstance(after.decoder, Decoder)
    weights, found = before.decoder.state_dict(), after.decoder.state_dict()
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert greedy(after) == greedy(before)
    assert set(json.loads((tmp_path / "imported" / "generation_config.json").read_text())["eos_token_id"]) == set(
        before.conversation.stop_ids
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_same_probabilities_for_every_family(make_folder, tmp_path, family):
    llama: Any = pytest.importorskip("xllamacpp", reason="no llama.cpp: pip install xllamacpp")
    original = make_folder(family)
    write_gguf(original, tmp_path / "model.gguf")
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(tmp_path / "model.gguf"), 256, 1
    params.warmup, params.verbosity = False, -1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = llama.Server(params)
    policy = Policy.load(original, "float32")
    prompt = policy.conversation.prompt((QUESTION,))
    found = server.handle_completions({"prompt": list(prompt), "max_tokens": 1, "logprobs": 8, "temperature": 0.0})
    top = {entry["id"]: entry["logprob"] for entry in found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    packed = PackedAttention([len(prompt)])
    with torch.no_grad():
        hidden_NC = policy.decoder(torch.tensor(prompt), packed.positions, packed)
        logprobs = policy.decoder.project(hidden_NC[-1:]).log_softmax(-1)[0]
    assert set(top) == set(logprobs.topk(8).indices.tolist())
    assert all(abs(logprob - float(logprobs[token])) < 0.01 for token, logprob in top.items())


def test_transformers_4_finds_the_class_of_an_imported_tokenizer(make_folder, tmp_path):
    write_gguf(make_folder("llama"), tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path)
    assert tokenizer_class(tmp_path) == "PreTrainedTokenizerFast"


def tokenizer_class(folder: Path) -> str:
    return json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]


def test_an_architecture_that_is_not_ours_is_read_by_transformers(make_folder, tmp_path, monkeypatch):
    original = make_folder("llama")
    write_gguf(original, tmp_path / "model.gguf")
    monkeypatch.setattr("schoolhouse.hub.gguf_import._read_decoder", lambda path, reader: None)
    import_gguf(tmp_path / "model.gguf", tmp_path / "imported")
    before, after = Policy.load(original, "float32"), Policy.load(tmp_path / "imported", "float32")
    weights, found = before.decoder.state_dict(), after.decoder.state_dict()
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert greedy(after) == greedy(before)


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_an_imported_tokenizer_splits_text_as_the_file_says(make_folder, tmp_path, monkeypatch, split):
    monkeypatch.setattr("schoolhouse.export.gguf.split_of", lambda tokenizer: split)
    write_gguf(make_folder("llama"), tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert SPLITS[str(split_of(tokenizer))] == SPLITS[split]


def test_an_unknown_split_is_refused_with_the_way_out(make_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("schoolhouse.export.gguf.split_of", lambda tokenizer: "abacus")
    write_gguf(make_folder("llama"), tmp_path / "model.gguf")
    with pytest.raises(SchoolError, match="unknown value `abacus`.*--tokenizer"):
        import_gguf(tmp_path / "model.gguf", tmp_path)
    import_gguf(tmp_path / "model.gguf", tmp_path, tokenizer=tmp_path / "original")
    assert tokenizer_class(tmp_path) == "PreTrainedTokenizerFast"
    assert split_of(json.loads((tmp_path / "tokenizer.json").read_text())) == "qwen2"


def test_a_truncated_file_is_named(make_folder, tmp_path):
    write_gguf(make_folder("llama"), tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    for length in (0, 10, len(content) // 20):
        (tmp_path / "model.gguf").write_bytes(content[:length])
        with pytest.raises(SchoolError, match=r"model\.gguf is not a complete GGUF file"):
            import_gguf(tmp_path / "model.gguf", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SchoolError, match=r"missing\.gguf is not a file"):
        import_gguf(tmp_path / "missing.gguf", tmp_path)
