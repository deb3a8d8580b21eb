"""Decoding with slots computes what packed sequences compute, through unequal prompts, refills and moves."""

import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache

HEADS = [(4, 4), (4, 2), (4, 1)]  # query and key heads


def hidden_states(decoder, ids):
    """Hidden states of a whole sequence in one forward pass. [T, C]"""
    packed = PackedAttention([len(ids)])
    with torch.no_grad():
        return decoder(torch.tensor(ids), packed.positions, packed)


def prefill(decoder, cache, prompts, slot_prompts=None):
    """Read the prompts, and admit one slot for each, or one for each index in `slot_prompts`."""
    packed = PackedAttention([len(p) for p in prompts], keep_kv=True)
    with torch.no_grad():
        decoder(torch.tensor([t for p in prompts for t in p]), packed.positions, packed)
    names = [tuple(p) for p in prompts]
    cache.store_prompts(packed, names)
    cache.admit(names if slot_prompts is None else [names[i] for i in slot_prompts])


def decode_step(decoder, cache, tokens):
    with torch.no_grad():
        hidden = decoder(torch.tensor(tokens), cache.begin_step(), cache)
    cache.end_step()
    return hidden


def make_cache(decoder, num_slots, capacity):
    config = decoder.config
    heads, head_dim = config.num_key_value_heads, config.head_dim
    return SlotKVCache(config.num_hidden_layers, num_slots, heads, head_dim, capacity, capacity)


def random_sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("lengths", [[5], [4, 4], [1, 7, 3]])
def test_packed_attention_is_softmax_of_products_within_each_sequence(heads, kv_heads, lengths):
    torch.manual_seed(0)
    n, head_dim = sum(lengths), 8
    q, k, v = torch.randn(n, heads, head_dim), torch.randn(n, kv_heads, head_dim), torch.randn(n, kv_heads, head_dim)
    out, start = PackedAttention(lengths).attend(0, q, k, v), 0
    for length in lengths:
        for i in range(start, start + length):
            for head in range(heads):
                keys, values = k[start : i + 1, head * kv_heads // heads], v[start : i + 1, head * kv_heads // heads]
                weight = torch.softmax(keys @ q[i, head] / head_dim**0.5, 0)
                assert torch.allclose(out[i, head], weight @ values, atol=1e-5)
        start += length


def test_packed_positions_restart_with_each_sequence():
    assert PackedAttention([3, 1, 2]).positions.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("heads, kv_heads", HEADS)
def test_decoding_token_by_token_equals_one_forward_pass(tiny_decoder, heads, kv_heads):
    decoder = tiny_decoder(num_attention_heads=heads, num_key_value_heads=kv_heads)
    sequences = random_sequences([10, 6, 14])
    prompts = [ids[:-5] for ids in sequences]  # 5, 1 and 9 tokens long
    cache = make_cache(decoder, 3, 40)  # more capacity than the first steps use
    prefill(decoder, cache, prompts)
    for t in range(-5, 0):
        hidden = decode_step(decoder, cache, [ids[t] for ids in sequences])
        for ids, row in zip(sequences, hidden, strict=True):
            assert torch.allclose(row, hidden_states(decoder, ids)[t], atol=1e-5)


def test_one_prompt_is_stored_once_for_several_slots(tiny_decoder):
    decoder = tiny_decoder()
    first, second = random_sequences([6, 3])
    cache = make_cache(decoder, 4, 16)
    prefill(decoder, cache, [first, second], slot_prompts=[1, 0, 0])
    assert (cache.busy, cache.free, len(cache.prompt_names)) == (3, 1, 2)
    hidden = decode_step(decoder, cache, [7, 8, 9])
    for row, ids in zip(hidden, [[*second, 7], [*first, 8], [*first, 9]], strict=True):
        assert torch.allclose(row, hidden_states(decoder, ids)[-1], atol=1e-5)


def test_a_refilled_slot_keeps_nothing_of_the_sequence_before(tiny_decoder):
    decoder = tiny_decoder()
    long, short, other = random_sequences([20, 2, 5])
    cache = make_cache(decoder, 2, 32)
    prefill(decoder, cache, [long, other])
    decode_step(decoder, cache, [1, 2])
    cache.release(torch.tensor([True, False]))  # `other` moves into the slot of `long`
    prefill(decoder, cache, [short])
    hidden = decode_step(decoder, cache, [3, 4])
    assert torch.allclose(hidden[0], hidden_states(decoder, [*other, 2, 3])[-1], atol=1e-5)
    assert torch.allclose(hidden[1], hidden_states(decoder, [*short, 4])[-1], atol=1e-5)


@given(st.data())
def test_release_keeps_the_other_slots_dense_and_complete(data):
    n = data.draw(st.integers(1, 9))
    slot_prompts = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    finished = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    prompts = sorted(set(slot_prompts))
    cache = SlotKVCache(num_layers=1, num_slots=9, num_kv_heads=1, head_dim=1, prompt_capacity=2, capacity=2)
    packed = PackedAttention([1] * len(prompts), keep_kv=True)
    names = torch.tensor(prompts, dtype=torch.float)[:, None, None]  # the key of each prompt is its name
    packed.attend(0, names, names, names)
    cache.store_prompts(packed, prompts)
    cache.admit(slot_prompts)
    cache.keys[0][:n] = torch.arange(1.0, n + 1)[:, None, None, None]
    cache.lengths[:n] = 1 + torch.arange(n)
    order = cache.release(torch.tensor(finished)).tolist()
    assert sorted(order) == [i for i in range(n) if not finished[i]]
    assert cache.busy == len(order)
    assert cache.keys[0][: len(order), 0, 0, 0].tolist() == [i + 1 for i in order]
    assert cache.lengths[: len(order)].tolist() == [1 + i for i in order]
    assert set(cache.prompt_names) == {slot_prompts[i] for i in order}
    assert len(cache.prompt_names) == len(set(cache.prompt_names))
    assert [cache.prompt_names[place] for place in cache.prompt_of[: len(order)]] == [slot_prompts[i] for i in order]
    prompt_keys = cache.prompt_keys[0][cache.prompt_of[: len(order)], 0, 0, 0]
    assert prompt_keys.tolist() == [slot_prompts[i] for i in order]


def test_prompts_without_kept_keys_cannot_be_stored(tiny_decoder):
    cache = make_cache(tiny_decoder(), 1, 8)
    with pytest.raises(ValueError, match="keep_kv=True"):
        cache.store_prompts(PackedAttention([3]), ["name"])


@pytest.mark.skipif(sys.platform != "linux", reason="where the C library is glibc")
@pytest.mark.fault("memory grows")
def test_freed_memory_goes_back_to_the_system():
    code = (
        "import torch; from schoolhouse.model.kv_cache import trim_memory\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "freed = [torch.zeros(100_000) for _ in range(200)]\n"
        "kept = [torch.zeros(10) for _ in range(10)]; del freed\n"
        "before = resident(); trim_memory(); print(before - resident())"
    )
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(result.stdout) > 50e6
