"""The estimate of memory counts what a learner allocates."""

import torch

from schoolhouse.hub import memory
from schoolhouse.hub.memory import memory_need


def test_parameters_gradients_and_moments_are_counted(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(memory, "pick_dtype", lambda precision, device: torch.float32)
    need = memory_need(tiny_config(), 1_000_000)
    assert (need.weights, need.gradients, need.moments) == (4e6, 4e6, 8e6)
    assert need.kv_cache == 1_000 * 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert need.training > need.sampling > need.weights


def test_a_copy_in_bfloat16_is_counted(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(memory, "pick_dtype", lambda precision, device: torch.bfloat16)
    assert memory_need(tiny_config(), 1_000_000).weights == 6e6


def test_logits_are_those_of_one_chunk(tiny_config) -> None:
    small, large = (memory_need(tiny_config(vocab_size=size), 1_000) for size in (1_000, 1_000_000))
    assert small.logits == 8 * 4_096 * 1_000
    assert large.logits == 8 * 256 * 1_000_000


def test_the_report_compares_with_this_machine(tiny_config, monkeypatch) -> None:
    need = memory_need(tiny_config(), 1_000)
    monkeypatch.setattr(memory, "machine_memory", lambda: (10**12, 10**12))
    assert need.lines()[-1] == ("memory here", "1,000.00 GB free of 1,000.00 GB: to train, it fits")
    monkeypatch.setattr(memory, "machine_memory", lambda: (1_000, 10**12))
    assert "it does not fit; set microbatch_tokens lower" in need.lines()[-1][1]
