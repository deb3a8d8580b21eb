"""Other families behind our attention: the same logits as their own, or refused."""

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


def their_model(model_type: str, folder: Path, size: float = 0.1, **changes):
    """A random model of a family, written to `folder` by transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # norms start at one and biases at zero: move them, or a missing one would not be seen
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * size)
    model.save_pretrained(folder)
    return model


def packed_logits(decoder, *sequences: list[int]) -> torch.Tensor:
    memory = PackedAttention([len(s) for s in sequences])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor([t for s in sequences for t in s]), memory.positions, memory))


A, B = [5, 9, 13, 2, 60, 44, 3, 21, 8], [7, 7, 30, 1]


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("olmo2", {}),
        ("smollm3", {}),
        ("phi3", {}),
        ("gemma3_text", {"head_dim": 12, "query_pre_attn_scalar": 3}),
        ("granite", {"attention_multiplier": 0.5, "residual_multiplier": 0.3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_family_that_fits_gives_its_own_logits(tmp_path, model_type, changes):
    theirs = their_model(model_type, tmp_path, **changes)
    ours = load_decoder(tmp_path)
    assert isinstance(ours, HFAdapter)
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([tokens])).logits[0] for tokens in (A, B)])
    assert (packed_logits(ours, A, B) - expected).abs().max() < 1e-5


def test_the_shape_holds_the_numbers_of_the_model(tmp_path):
    their_model("olmo2", tmp_path)
    shape = load_adapter(tmp_path).config
    assert {key: getattr(shape, key) for key in SMALL if key.startswith(("num", "vocab", "hidden"))} == {
        key: value for key, value in SMALL.items() if key.startswith(("num", "vocab", "hidden"))
    }
    assert (shape.head_dim, shape.model_type, shape.max_seq_len) == (12, "olmo2", 64)


def test_the_window_bounds_the_length(tmp_path):
    their_model("phi3", tmp_path, sliding_window=24)
    assert load_adapter(tmp_path).config.max_seq_len == 24


def test_the_sampler_extends_with_it(tmp_path):
    theirs = their_model("olmo2", tmp_path)
    problem = Problem("p", (Message("user", "?"),), "")
    asked = [
        Rollout(problem, Key(0, "t", sample=i), tuple(s), (False,) * len(s), (NAN,) * len(s))
        for i, s in enumerate((A, B))
    ]
    for prompt, rollout in zip(
        (A, B), extend(load_adapter(tmp_path), asked, 7, [], 0, params=SamplingParams(0.0)), strict=True
    ):
        ids = list(prompt)
        for _ in range(7):
            with torch.no_grad():
                ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
        assert rollout.tokens == tuple(ids)


def test_gradients_reach_every_weight(tmp_path):
    their_model("olmo2", tmp_path)
    ours = load_adapter(tmp_path)
    memory = PackedAttention([len(A)])
    ours.project(ours(torch.tensor(A), memory.positions, memory)).square().sum().backward()
    assert not [name for name, weight in ours.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_what_it_saves_plain_transformers_opens_with_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    their_model("smollm3", tmp_path / "theirs")
    ours = load_adapter(tmp_path / "theirs")
    with torch.no_grad():
        next(ours.parameters()).mul_(1.5)
    save_decoder(ours, tmp_path / "saved", eos_id=0, pad_id=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = again(torch.tensor([A])).logits[0]
    assert again.config._attn_implementation != "schoolhouse"
    assert (packed_logits(ours, A) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "model_type, changes, why",
    [
        ("granite", {"logits_scaling": 8.0}, "differ by"),
        ("gemma2", {"head_dim": 12, "attn_logit_softcapping": None}, "differ by"),
        ("gemma2", {"head_dim": 12, "final_logit_softcapping": None}, "softcap"),
        ("gpt_oss", {"head_dim": 12, "num_local_experts": 4}, "s_aux"),
        ("mamba", {}, "attention"),
    ],
)
@pytest.mark.parametrize("size", [0.0, 0.1])  # caps are next to linear for small weights, and still found
def test_a_family_that_would_be_silently_wrong_is_refused_by_name(tmp_path, model_type, changes, why, size):
    their_model(model_type, tmp_path, size, **changes)
    with pytest.raises(SchoolError, match=f"`{model_type}`.*{why}"):
        load_adapter(tmp_path)


def test_a_truncated_file_is_an_error_that_names_the_folder(tmp_path):
    their_model("olmo2", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SchoolError, match=str(tmp_path)):
        load_adapter(tmp_path)


def test_a_missing_weight_is_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    their_model("olmo2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SchoolError, match="missing_keys.*up_proj"):
        load_adapter(tmp_path)


def test_an_unknown_family_is_an_error_that_names_the_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(SchoolError, match=f"{tmp_path}.*abacus"):
        load_decoder(tmp_path)
