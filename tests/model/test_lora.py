"""LoRA: only the small matrices learn, the frozen model stays as it was, and nothing is merged while it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schoolhouse.algorithms.settings import Lora
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.hf_adapter import HFAdapter
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.model.lora import (
    Adapter,
    FrozenLinear,
    LoRALinear,
    adapter_tensors,
    add_adapter,
    check_trainable,
    init_adapter,
    lora_layers,
    merge_adapter,
    other_adapter,
    target_layers,
    weights_sha256,
)
from schoolhouse.types import SchoolError

TOKENS = torch.tensor([5, 9, 13, 2, 60, 44, 3, 21, 8])


def with_lora(
    decoder: Any, rank: int = 4, targets: str = "all", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    adapter = Adapter(rank, 32.0, target_layers(decoder, targets), "base", weights_sha256(decoder), dtype)
    add_adapter(decoder, adapter)
    init_adapter(decoder, seed)
    return decoder


def trained(decoder: Any) -> Any:
    """The decoder with matrices B that are not zero, as after some updates."""
    for i, (_, layer) in enumerate(lora_layers(decoder)):
        layer.lora_B.data.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(i))
    return decoder


def logits(decoder: Any) -> Tensor:
    packed = PackedAttention([len(TOKENS)])
    return decoder.project(decoder(TOKENS, packed.positions, packed))


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_a_layer_adds_the_scaled_product_to_the_frozen_one():
    layer = LoRALinear(nn.Linear(6, 5), rank=2, scale=16.0)
    layer.lora_A.data.normal_()
    layer.lora_B.data.normal_()
    x = torch.randn(3, 4, 6)
    expected = F.linear(x, layer.weight, layer.bias) + 16.0 * (x @ layer.lora_A.T @ layer.lora_B.T)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer.enabled = False
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_new_adapter_changes_no_bit(tiny_decoder: Callable[..., Decoder]):
    assert torch.equal(logits(with_lora(tiny_decoder())), logits(tiny_decoder()))


def test_the_first_matrices_depend_only_on_the_seed(tiny_decoder: Callable[..., Decoder]):
    one, same, other = (adapter_tensors(with_lora(tiny_decoder(), seed=seed)) for seed in (1, 1, 2))
    part = adapter_tensors(with_lora(tiny_decoder(), seed=1, targets="mlp"))
    first = "model.layers.0.mlp.up_proj.lora_A"
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[first], other[first])
    assert torch.equal(one[first], part[first])
    assert float(one[first].abs().max()) <= 32**-0.5


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_targets_name_layers_of_the_blocks(tiny_decoder: Callable[..., Decoder], targets: str, names: set[str]):
    found = target_layers(tiny_decoder(), targets)
    assert {name.rpartition(".")[2] for name in found} == names
    assert len(found) == 2 * len(names)


def test_only_the_adapter_gets_a_gradient(tiny_decoder: Callable[..., Decoder]):
    decoder = trained(with_lora(tiny_decoder()))
    logits(decoder).square().sum().backward()
    with_gradient = {name for name, p in decoder.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in decoder.named_parameters() if ".lora_" in name}
    assert all(float(p.grad.abs().max()) > 0 for p in decoder.parameters() if p.grad is not None)


def test_the_gradient_is_that_of_the_merged_weight(tiny_decoder: Callable[..., Decoder]):
    decoder, full = trained(with_lora(tiny_decoder())), trained(with_lora(tiny_decoder()))
    merge_adapter(full)
    for model in (decoder, full):
        logits(model).square().sum().backward()
    layer = dict(lora_layers(decoder))["model.layers.1.mlp.up_proj"]
    grad = full.model.layers[1].mlp.up_proj.weight.grad
    assert torch.allclose(gradient(layer.lora_A), layer.scale * layer.lora_B.T @ grad, rtol=1e-3, atol=1e-3)
    assert torch.allclose(gradient(layer.lora_B), layer.scale * grad @ layer.lora_A.T, rtol=1e-3, atol=1e-3)


@pytest.mark.fault("adapter and whole model")
def test_a_request_that_would_train_something_else_is_an_error(tiny_decoder: Callable[..., Decoder]):
    decoder = with_lora(tiny_decoder())
    check_trainable(decoder, Lora(rank=4))
    check_trainable(tiny_decoder(), Lora())
    for model, lora in ((decoder, Lora()), (decoder, Lora(rank=8)), (tiny_decoder(), Lora(rank=4))):
        with pytest.raises(SchoolError, match=f"lora.rank {lora.rank} asks for"):
            check_trainable(model, lora)
    decoder.model.norm.weight.requires_grad_(True)
    with pytest.raises(SchoolError, match=r"model\.norm\.weight"):
        check_trainable(decoder, Lora(rank=4))


def test_a_base_in_bfloat16_computes_with_the_rounded_weights(tiny_decoder: Callable[..., Decoder]):
    rounded = tiny_decoder()
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16().float()
    rounded, half = with_lora(rounded), with_lora(tiny_decoder(), dtype=torch.bfloat16)
    for model in (rounded, half):
        logits(trained(model)).square().sum().backward()
    assert torch.allclose(logits(half), logits(rounded), atol=1e-4)
    for (name, one), (_, other) in zip(lora_layers(half), lora_layers(rounded), strict=True):
        assert torch.allclose(gradient(one.lora_A), gradient(other.lora_A), rtol=1e-3, atol=1e-3), name
    kinds = {name: p.dtype for name, p in half.named_parameters()}
    assert kinds["model.embed_tokens.weight"] == kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert kinds["model.norm.weight"] == kinds["model.layers.0.mlp.up_proj.lora_A"] == torch.float32


def test_activation_checkpointing_gives_the_same_gradients(tiny_decoder: Callable[..., Decoder]):
    plain, checkpointed = (trained(with_lora(tiny_decoder())) for _ in range(2))
    checkpointed.activation_checkpointing = True
    for model in (plain, checkpointed):
        logits(model).square().sum().backward()
    for (name, one), (_, other) in zip(lora_layers(plain), lora_layers(checkpointed), strict=True):
        assert torch.equal(gradient(one.lora_A), gradient(other.lora_A)), name


def test_a_frozen_layer_converts_its_weight_once_and_again_after_a_change():
    layer = FrozenLinear(nn.Linear(6, 5).requires_grad_(False))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(3, 6)
        first = layer(x)
        copy = layer._copy
        assert torch.equal(layer(x), first)
        assert layer._copy is copy
        layer.weight.mul_(2.0)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer._copy is not copy


def test_another_adapter_for_a_while(tiny_decoder: Callable[..., Decoder]):
    decoder, base = trained(with_lora(tiny_decoder(), seed=1)), tiny_decoder()
    other = trained(with_lora(tiny_decoder(), seed=2))
    before = logits(decoder)
    with other_adapter(decoder, None):
        assert torch.equal(logits(decoder), logits(base))
    with other_adapter(decoder, adapter_tensors(other)):
        assert torch.equal(logits(decoder), logits(other))
    assert torch.equal(logits(decoder), before)


@pytest.mark.fault("merged twice")
def test_an_adapter_is_merged_once(tiny_decoder: Callable[..., Decoder]):
    decoder = trained(with_lora(tiny_decoder()))
    before = logits(decoder)
    merge_adapter(decoder)
    assert torch.allclose(logits(decoder), before, atol=1e-4)
    assert [name for name, _ in decoder.named_parameters()] == [name for name, _ in tiny_decoder().named_parameters()]
    with pytest.raises(SchoolError, match="an adapter can be merged only once"):
        merge_adapter(decoder)


def test_a_rounded_base_is_not_merged(tiny_decoder: Callable[..., Decoder]):
    with pytest.raises(SchoolError, match="load the base model in float32"):
        merge_adapter(with_lora(tiny_decoder(), dtype=torch.bfloat16))


def hf_model(model_type: str, folder: Path) -> HFAdapter:
    """A small random model of a type that only transformers computes."""
    from schoolhouse.model.checkpoint import load_decoder

    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "n_layer": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **{**sizes, "n_embd": 32, "n_head": 4, "n_positions": 64})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    decoder = load_decoder(folder)
    assert isinstance(decoder, HFAdapter)
    return decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_transformers_learn_with_an_adapter(tmp_path: Path, dtype: torch.dtype):
    decoder = hf_model("olmo2", tmp_path)
    before = logits(decoder).detach()
    decoder = with_lora(decoder, dtype=dtype)
    assert torch.allclose(logits(decoder), before, atol=1e-6 if dtype == torch.float32 else 0.1)
    logits(trained(decoder)).square().sum().backward()
    assert {name for name, p in decoder.named_parameters() if p.grad is not None} == {
        name for name, _ in decoder.named_parameters() if ".lora_" in name
    }
    assert len(decoder.lora.modules) == 14
    assert decoder.lora.modules[0] == "model.layers.0.self_attn.q_proj"


def test_layers_of_another_kind_are_named(tmp_path: Path):
    with pytest.raises(SchoolError, match=r"the layer `transformer\.h\.0\.attn\.c_attn` of this model is a Conv1D"):
        target_layers(hf_model("gpt2", tmp_path), "all")


def test_the_checksum_sees_one_changed_number(tiny_decoder: Callable[..., Decoder]):
    changed = tiny_decoder()
    changed.model.norm.weight.data[3] += 1e-6
    assert weights_sha256(tiny_decoder()) == weights_sha256(tiny_decoder()) != weights_sha256(changed)
