"""Other model types with our attention: they give the same logits as with their own, or loading fails."""

import json
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from schoolhouse.model.checkpoint import load_decoder, save_decoder
from schoolhouse.model.hf_adapter import HFAdapter, load_adapter
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.types import NAN, Key, Message, Problem, Rollout, SchoolError

SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def save_hf_model(model_type: str, folder: Path, size: float = 0.1, **changes):
    """A random model of this type, saved to `folder` by transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # norms start at 1 and biases at 0: change them, or a missing one would not be noticed
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * size)
    model.save_pretrained(folder)
    return model


def packed_logits(decoder, *sequences: list[int]) -> torch.Tensor:
    packed = PackedAttention([len(s) for s in sequences])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor([t for s in sequences for t in s]), packed.positions, packed))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi"])
def test_logits_are_float32_inside_autocast(model_type: str, tmp_path: Path):
    """gemma2 caps its logits, and the head of phi has a bias."""
    save_hf_model(model_type, tmp_path)
    adapter = load_adapter(tmp_path)
    hidden = torch.randn(20, SMALL["hidden_size"]).bfloat16().float()
    with torch.no_grad():
        for weight in adapter.hf_model.get_output_embeddings().parameters():
            weight.copy_((8 * weight).bfloat16())
        expected = adapter.project(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            logits = adapter.project(hidden)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-4


MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
}
A, B = [5, 9, 13, 2, 60, 44, 3, 21, 8], [7, 7, 30, 1]


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("olmo2", {}),
        ("smollm3", {}),
        ("phi3", {}),
        ("gemma3_text", {"head_dim": 12, "query_pre_attn_scalar": 3}),
        ("granite", {"attention_multiplier": 0.5, "residual_multiplier": 0.3, "logits_scaling": 8.0}),
        ("gemma2", {"head_dim": 12, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}),
        ("gpt_oss", {"head_dim": 12, "num_local_experts": 4, "sliding_window": 3}),
        ("gemma3_text", {"head_dim": 12, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}),
        ("cohere", {"logit_scale": 0.25}),
        ("stablelm", {"partial_rotary_factor": 0.5}),
        ("nemotron", {"head_dim": 12}),
        ("gpt2", {}),
        ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
        ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 48}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("deepseek_v3", MLA),  # values are narrower than keys
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logits_equal_those_of_transformers(tmp_path, model_type, changes):
    hf_model = save_hf_model(model_type, tmp_path, **changes)
    adapter = load_decoder(tmp_path)
    assert isinstance(adapter, HFAdapter)
    with torch.no_grad():
        expected = torch.cat([hf_model(torch.tensor([tokens])).logits[0] for tokens in (A, B)])
    assert (packed_logits(adapter, A, B) - expected).abs().max() < 1e-5


def test_the_config_holds_the_sizes_of_the_model(tmp_path):
    save_hf_model("olmo2", tmp_path)
    config = load_adapter(tmp_path).config
    sizes = {key: value for key, value in SMALL.items() if key.startswith(("num", "vocab", "hidden"))}
    assert {key: getattr(config, key) for key in sizes} == sizes
    assert (config.head_dim, config.model_type, config.max_seq_len) == (12, "olmo2", 64)


def test_a_short_window_is_computed(tmp_path):
    save_hf_model("phi3", tmp_path, sliding_window=24)
    config = load_adapter(tmp_path).config
    assert (config.max_seq_len, config.plain_attention) == (64, False)


def test_a_long_window_limits_the_sequence_length_and_keeps_the_fast_kernels(tmp_path):
    save_hf_model("phi3", tmp_path, sliding_window=2048, max_position_embeddings=4096)
    config = load_adapter(tmp_path).config
    assert (config.max_seq_len, config.plain_attention) == (2048, True)


def test_a_window_that_attention_is_not_told_limits_the_sequence_length(tmp_path, monkeypatch):
    monkeypatch.setattr("schoolhouse.model.hf_adapter._rule", lambda options: None)
    save_hf_model("phi3", tmp_path, sliding_window=24)
    config = load_adapter(tmp_path).config
    assert (config.max_seq_len, config.plain_attention) == (24, True)


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("olmo2", {}),
        ("gemma2", {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 3}),
        ("gpt_oss", {"head_dim": 12, "num_local_experts": 4, "sliding_window": 2}),
    ],
)
def test_greedy_sampling_equals_that_of_transformers(tmp_path, model_type, changes):
    hf_model = save_hf_model(model_type, tmp_path, **changes)
    problem = Problem("p", (Message("user", "?"),), "")
    prompts = [
        Rollout(problem, Key(0, "t", sample=i), tuple(ids), (False,) * len(ids), (NAN,) * len(ids))
        for i, ids in enumerate((A, B))
    ]
    rollouts = extend(load_adapter(tmp_path), prompts, 7, [], 0, params=SamplingParams(0.0))
    for prompt, rollout in zip((A, B), rollouts, strict=True):
        ids = list(prompt)
        for _ in range(7):
            with torch.no_grad():
                ids.append(int(hf_model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert rollout.tokens == tuple(ids)


def test_gradients_reach_every_weight(tmp_path):
    save_hf_model("olmo2", tmp_path)
    adapter = load_adapter(tmp_path)
    packed = PackedAttention([len(A)])
    adapter.project(adapter(torch.tensor(A), packed.positions, packed)).square().sum().backward()
    assert not [name for name, weight in adapter.named_parameters() if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("olmo2", {}),
        ("gpt2", {}),
        ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 48}),  # dropout while it trains
        ("gemma2", {"head_dim": 12, "attn_logit_softcapping": 1.5, "sliding_window": 3}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_activation_checkpointing_gives_the_same_gradients_with_fewer_saved_tensors(tmp_path, model_type, changes):
    save_hf_model(model_type, tmp_path, **changes)
    adapter, gradients, saved, sizes = load_adapter(tmp_path), [], [], []
    for recomputes in (False, True):
        adapter.activation_checkpointing = recomputes
        packed = PackedAttention([len(A), len(B)])
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            hidden = adapter(torch.tensor([*A, *B]), packed.positions, packed)
        adapter.zero_grad()
        adapter.project(hidden).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in adapter.parameters() if weight.grad is not None])
        saved.append(sum(sizes))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert saved[1] < 0.5 * saved[0]
    assert not [module for module in adapter.modules() if "forward" in vars(module)]


def test_activation_checkpointing_of_a_model_without_known_blocks_is_an_error(tmp_path, monkeypatch):
    from transformers import modeling_layers

    save_hf_model("olmo2", tmp_path)
    adapter = load_adapter(tmp_path)
    adapter.activation_checkpointing = True
    monkeypatch.setattr(modeling_layers, "GradientCheckpointingLayer", torch.nn.Identity)
    packed = PackedAttention([len(A)])
    with pytest.raises(SchoolError, match="does not work for Olmo2Model.* set `activation_checkpointing` to false"):
        adapter(torch.tensor(A), packed.positions, packed)


def test_transformers_loads_a_saved_adapter_with_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    save_hf_model("smollm3", tmp_path / "original")
    adapter = load_adapter(tmp_path / "original")
    with torch.no_grad():
        next(adapter.parameters()).mul_(1.5)
    save_decoder(adapter, tmp_path / "saved", eos_id=0, pad_id=0)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = hf_model(torch.tensor([A])).logits[0]
    assert hf_model.config._attn_implementation != "schoolhouse"
    assert (packed_logits(adapter, A) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "model_type, changes, reason",
    [
        ("gptj", {"n_embd": 48, "n_head": 4, "n_layer": 2, "rotary_dim": 4}, "computes attention in its own code"),
        ("mamba", {}, "MambaMixer.*carry a state"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "Lfm2ShortConv.*carry a state"),
    ],
)
@pytest.mark.parametrize("size", [0.0, 0.1])  # caps are nearly linear for small weights, and still found
def test_a_model_type_that_our_attention_would_change_is_an_error(tmp_path, model_type, changes, reason, size):
    save_hf_model(model_type, tmp_path, size, **changes)
    with pytest.raises(SchoolError, match=f"`{model_type}`.*{reason}"):
        load_adapter(tmp_path)


def test_attention_that_differs_from_ours_is_an_error_with_the_difference(tmp_path):
    save_hf_model("doge", tmp_path)  # its attention drops the keys that a learned mask finds unimportant
    with pytest.raises(SchoolError, match=r"`doge`.*its logits differ by 0\.\d+ from those with its own attention"):
        load_adapter(tmp_path)


def test_code_from_a_folder_is_never_run(tmp_path):
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus", "auto_map": auto_map}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')")
    with pytest.raises(SchoolError, match="`abacus` needs Python code from the folder.*never run"):
        load_decoder(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_truncated_file_is_an_error_that_names_the_folder(tmp_path):
    save_hf_model("olmo2", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SchoolError, match=str(tmp_path)):
        load_adapter(tmp_path)


def test_a_missing_weight_is_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    save_hf_model("olmo2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SchoolError, match="missing_keys.*up_proj"):
        load_adapter(tmp_path)


def test_an_unknown_model_type_is_an_error_that_names_the_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(SchoolError, match=f"{tmp_path}.*abacus"):
        load_decoder(tmp_path)
