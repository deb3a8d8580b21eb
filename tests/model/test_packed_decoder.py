"""A packed decoder computes what the decoder computes, and notices changed weights."""

import shutil

import pytest
import torch

from schoolhouse.model.decoder import Decoder, init_weights
from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.model.lora import Adapter, add_adapter, init_adapter, lora_layers, target_layers, weights_sha256
from schoolhouse.model.native_attention import NativeSlotKVCache
from schoolhouse.model.packed_decoder import PackedDecoder, can_pack_decoder, choose_weights

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
LARGEST_ERROR = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}


@pytest.fixture(params=[(False, False), (True, False), (False, True)], ids=["llama", "qwen2", "qwen3"])
def decoder(request, tiny_config):
    bias, norm = request.param
    decoder = Decoder(tiny_config(qkv_bias=bias, qk_norm=norm))
    init_weights(decoder, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.rand_like(parameter))
    return decoder


decode_step = PackedDecoder._decode_step


class OnlyAttend:
    """A KV cache without the step in one call."""

    def __init__(self, cache):
        self.cache = cache

    def attend(self, layer, q_NHD, k_NKD, v_NKD):
        return self.cache.attend(layer, q_NHD, k_NKD, v_NKD)


def logits_of(model, tokens):
    context = PackedAttention([len(tokens)])
    return model.project(model(tokens, context.positions, context))


@pytest.mark.parametrize("type", LARGEST_ERROR)
def test_the_logits_are_those_of_the_decoder(decoder, type):
    tokens = torch.arange(9)
    with torch.no_grad():
        expected = logits_of(decoder, tokens)
    error = (logits_of(PackedDecoder(decoder, type), tokens) - expected).norm() / expected.norm()
    assert error < LARGEST_ERROR[type]


def test_changed_weights_are_packed_at_the_next_refresh(decoder):
    tokens = torch.arange(9)
    packed = PackedDecoder(decoder, "float32")
    with torch.no_grad():
        decoder.model.layers[0].mlp.up_proj.weight.mul_(3)
        decoder.lm_head.weight.add_(0.5)
    packed.refresh()
    with torch.no_grad():
        torch.testing.assert_close(logits_of(packed, tokens), logits_of(decoder, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("type", LARGEST_ERROR)
@pytest.mark.parametrize("slots", [1, 7])
@pytest.mark.parametrize("targets", ["", "all", "mlp"], ids=["whole model", "LoRA", "LoRA of the MLP"])
def test_a_decode_step_in_one_call_equals_one_call_for_each_product(tiny_config, type, slots, targets, monkeypatch):
    decoder = Decoder(tiny_config(head_dim=32, qkv_bias=True, qk_norm=True))
    init_weights(decoder, torch.Generator().manual_seed(0))
    if targets:
        add_adapter(decoder, Adapter(3, 32.0, target_layers(decoder, targets), "base", weights_sha256(decoder)))
        init_adapter(decoder, seed=0)
        for _, layer in lora_layers(decoder):
            layer.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    packed, steps = PackedDecoder(decoder, type), []
    monkeypatch.setattr(PackedDecoder, "_decode_step", lambda *args: steps.append(1) or decode_step(*args))
    hidden = []
    for by_product in (False, True):
        cache = NativeSlotKVCache(2, slots, decoder.config.num_key_value_heads, 32, prompt_capacity=9, capacity=4)
        prompts = PackedAttention([9, 5][:slots], keep_kv=True)
        packed(torch.arange(len(prompts.positions)), prompts.positions, prompts)
        cache.store_prompts(prompts, "ab"[:slots])
        cache.admit([("a", "b")[slot % 2] for slot in range(slots)])
        context = OnlyAttend(cache) if by_product else cache
        for step in range(3):
            hidden.append(packed(torch.arange(slots) + step, cache.begin_step(), context))
            cache.end_step()
    assert len(steps) == 3, "the cache did not take the step in one call, or the other context took it"
    for one, other in zip(hidden[:3], hidden[3:], strict=True):
        assert torch.equal(one, other)


def test_a_decoder_with_a_changed_layer_is_not_packed(decoder):
    assert can_pack_decoder(decoder)
    decoder.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert not can_pack_decoder(decoder)
    assert not can_pack_decoder(torch.nn.Linear(8, 8))


def test_auto_keeps_torch_for_small_models_and_never_rounds_more_than_the_learner(decoder, monkeypatch):
    assert choose_weights(decoder, "auto", torch.float32) is None
    assert choose_weights(decoder, "int8", torch.float32) == "int8"
    monkeypatch.setattr("schoolhouse.model.packed_decoder._SMALLEST", 0)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_weights(decoder, "auto", torch.float32) == "float32"
    assert choose_weights(decoder, "auto", torch.bfloat16) == "bfloat16"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_weights(decoder, "auto", torch.bfloat16) is None


def test_many_rows_in_bfloat16_are_left_to_torch_without_instructions_for_them(decoder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    tokens = torch.arange(120).repeat(2)[:130] % decoder.config.vocab_size
    packed = PackedDecoder(decoder, "bfloat16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(packed, tokens), logits_of(decoder, tokens))
        assert not torch.equal(logits_of(packed, tokens[:9]), logits_of(decoder, tokens[:9]))
