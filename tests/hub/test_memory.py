"""The memory of a model is counted by the function that checks the memory before a run."""

from typing import Any

import pytest
import torch

from schoolhouse.data.chat import Conversation
from schoolhouse.hub import memory
from schoolhouse.hub.memory import MICROBATCH_TOKENS, memory_need
from schoolhouse.model.lora import Adapter, add_adapter, target_layers
from schoolhouse.policy.memory_check import copied_bytes, learning_need
from schoolhouse.policy.policy import Policy


@pytest.fixture
def make(tiny_decoder, conversation: Conversation):
    """Makes a policy of a tiny model."""

    def build(precision: Any = "float32", **keys: Any) -> Policy:
        decoder = tiny_decoder(vocab_size=conversation.tokenizer.vocab_size, **keys)
        return Policy(decoder, conversation, precision, device="cpu")

    return build


def test_parameters_gradients_and_moments_are_counted(make) -> None:
    policy = make()
    count = sum(weight.numel() for weight in policy.decoder.parameters())
    need = memory_need(policy)
    assert need.full is not None
    assert (need.weights, need.copies) == (4 * count, 0)
    assert (need.full.gradients, need.full.moments) == (4 * count, 8 * count)
    assert need.kv_cache == 1_000 * 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert need.sampling > need.weights


def test_the_whole_model_needs_what_the_check_before_a_run_computes(make) -> None:
    assert memory_need(make()).full == learning_need(make(), make().max_seq_len, MICROBATCH_TOKENS)


def test_an_adapter_needs_gradients_and_moments_for_its_own_matrices_alone(make) -> None:
    need = memory_need(make())
    assert need.full is not None
    assert need.lora is not None
    layers = (32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)  # inputs, outputs
    count = 2 * sum(16 * (inputs + outputs) for inputs, outputs in layers)
    assert need.rank == 16
    assert (need.lora.gradients, need.lora.moments) == (4 * count, 8 * count)


def test_a_copy_in_bfloat16_is_counted(make) -> None:
    need = memory_need(make("bfloat16"))
    assert need.full is not None
    assert 0.4 * need.weights < need.copies == need.full.copies < 0.5 * need.weights  # vectors have no copy


def test_frozen_matrices_in_bfloat16_have_no_copy(make) -> None:
    """The matrices A and B alone are stored in float32."""
    policy = make("bfloat16")
    layers = target_layers(policy.decoder, "all")
    add_adapter(policy.decoder, Adapter(4, 32.0, layers, "", "", torch.bfloat16))
    trained = sum(weight.numel() for weight in policy.decoder.parameters() if weight.requires_grad)
    assert copied_bytes(policy) == 2 * trained


def test_the_report_names_both_ways_to_train_and_compares_them_with_this_machine(make, monkeypatch) -> None:
    need = memory_need(make())
    monkeypatch.setattr(memory, "machine_memory", lambda: (10**12, 10**12))
    topics, texts = zip(*need.lines(), strict=True)
    assert topics == ("memory to sample", "memory to train", "memory to train", "memory here")
    assert texts[1].startswith("the whole model: about 0.3")
    assert texts[2].startswith("LoRA of rank 16: about 0.3")
    assert texts[3] == "1,000.00 GB free of 1,000.00 GB: the whole model fits; LoRA of rank 16 fits"
    monkeypatch.setattr(memory, "machine_memory", lambda: (1_000, 10**12))
    assert "LoRA of rank 16 does not fit; set microbatch_tokens lower" in need.lines()[-1][1]


def test_without_memory_to_measure_nothing_fits(make, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    need = memory_need(make())
    assert (need.full, need.lora) == (None, None)
    assert "to train, nothing fits" in need.lines()[-1][1]
