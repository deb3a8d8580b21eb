"""The number of slots follows the memory; what is sampled does not depend on the number of slots."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.model import prompt_chunks
from schoolhouse.model.kv_cache import Bfloat16SlotKVCache, PackedAttention, SlotKVCache
from schoolhouse.policy import generator, sampling_memory
from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling_memory import SamplingNeed, choose_num_slots, sampling_need
from schoolhouse.types import SchoolError

CPU = torch.device("cpu")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7], [2, 7], [1, 8, 2, 8], [5], [3, 1, 4, 1, 5, 9, 2, 6], [9] * 20]


def bits(rollouts):
    return [(rollout.tokens, rollout.finish_reason) for rollout in rollouts]


@pytest.fixture
def memory(monkeypatch):
    """Sets the free memory in bytes."""

    def set_memory(num_bytes):
        monkeypatch.setattr(sampling_memory, "free_memory", lambda _: num_bytes)

    return set_memory


def need_of(decoder, prompts, max_new_tokens, slot_cache=SlotKVCache):
    distinct = len({tuple(prompt) for prompt in prompts})
    return sampling_need(decoder.config, slot_cache, len(prompts), distinct, max(map(len, prompts)), max_new_tokens)


@pytest.mark.parametrize("num_slots", [1, 2, 4, 7])
def test_with_less_memory_fewer_slots_sample_the_same_tokens(
    tiny_decoder, make_prompts, memory, monkeypatch, num_slots
):
    decoder, caches = tiny_decoder(), []

    class Recorded(SlotKVCache):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            caches.append(self)

    attention = (PackedAttention, Recorded)
    together = extend(decoder, make_prompts(PROMPTS), 12, (4,), 0, attention=attention)
    need = need_of(decoder, PROMPTS, 12)
    memory(need.total(num_slots) / sampling_memory.SHARE + 1)
    fewer = extend(decoder, make_prompts(PROMPTS), 12, (4,), 0, attention=attention)
    assert bits(fewer) == bits(together)
    assert [cache.num_slots for cache in caches] == [7, num_slots]


def test_the_stores_of_a_cache_are_as_large_as_promised(tiny_decoder):
    decoder = tiny_decoder()
    config = decoder.config
    cache = SlotKVCache(
        config.num_hidden_layers, 5, config.num_key_value_heads, config.head_dim, 64, capacity=10, max_prompts=3
    )
    stores = [store for value in vars(cache).values() if isinstance(value, list) for store in value]
    need = sampling_need(config, SlotKVCache, 5, 3, 64, 10)
    ids_and_logprobs = 5 * 10 * 12
    assert sum(store.nbytes for store in stores) == 5 * need.slot - ids_and_logprobs + 3 * need.prompt
    half = sampling_need(config, Bfloat16SlotKVCache, 5, 3, 64, 10)
    assert half.prompt == need.prompt // 2


def test_no_slot_fits_is_an_error_with_the_numbers_and_the_keys(tiny_decoder, make_prompts, memory):
    decoder = tiny_decoder()
    memory(1_000)
    message = (
        r"needs 0\.\d MB of memory for one rollout .*up to 20 tokens and up to 12 new tokens: lower `max_new_tokens`"
    )
    with pytest.raises(SchoolError, match=message):
        extend(decoder, make_prompts(PROMPTS), 12, (4,), 0)


def test_reserved_memory_is_not_used(memory):
    need = SamplingNeed(8, 1, 1, 1, slot=100, prompt=0, logits=0, prefill=0)
    memory(1_000)
    assert choose_num_slots(need, 512, CPU) == 8
    assert choose_num_slots(need, 3, CPU) == 3
    assert choose_num_slots(need, 512, CPU, reserved=500) == 4


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(0, 20),
    st.floats(0, 2e4),
)
def test_rounds_are_equal_and_as_few_as_possible(rollouts, prompts, slot, prompt, logits, budget):
    need = SamplingNeed(rollouts, prompts, 1, 1, slot, prompt, logits, prefill=10)
    num_slots = need.slots_within(budget)
    if not num_slots:
        assert need.total(1) > budget
        return
    assert need.total(num_slots) <= budget
    rounds = -(-rollouts // num_slots)
    assert num_slots == -(-rollouts // rounds)
    if rounds > 1:
        assert need.total(-(-rollouts // (rounds - 1))) > budget


@pytest.mark.parametrize("prefill_tokens", [1, 7, 16, 4_096])
def test_a_prefill_in_chunks_gives_the_same_tokens(tiny_decoder, make_prompts, monkeypatch, prefill_tokens):
    whole = extend(tiny_decoder(), make_prompts(PROMPTS), 12, (4,), 0)
    for module in (prompt_chunks, generator, sampling_memory):
        monkeypatch.setattr(module, "PREFILL_TOKENS", prefill_tokens)
    decoder, read = tiny_decoder(), []
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda tokens, *rest: read.append(len(tokens)) or forward(tokens, *rest))
    chunked = extend(decoder, make_prompts(PROMPTS), 12, (4,), 0)
    assert bits(chunked) == bits(whole)
    assert max(read) <= max(prefill_tokens, len(PROMPTS))
    for one, other in zip(chunked, whole, strict=True):
        assert one.logprob[-1] == pytest.approx(other.logprob[-1], abs=1e-4)


def test_a_cache_in_bfloat16_gives_a_decoder_in_bfloat16_the_same_tokens(tiny_decoder, make_prompts):
    results = []
    for slot_cache in (SlotKVCache, Bfloat16SlotKVCache):
        with torch.autocast("cpu", torch.bfloat16):
            rollouts = extend(
                tiny_decoder(), make_prompts(PROMPTS), 12, (4,), 0, attention=(PackedAttention, slot_cache)
            )
        results.append([dataclasses.astuple(rollout) for rollout in rollouts])
    assert repr(results[0]) == repr(results[1])
