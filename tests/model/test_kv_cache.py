"""Slots see what packed sequences see, through unequal prompts, refills and moves."""

import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache

HEADS = [(4, 4), (4, 2), (4, 1)]  # query and key heads


def hidden_of(decoder, ids):
    """What the decoder makes of a whole sequence at once. [T, C]"""
    memory = PackedAttention([len(ids)])
    with torch.no_grad():
        return decoder(torch.tensor(ids), memory.positions, memory)


def prefill(decoder, memory, prompts, source=None):
    packed = PackedAttention([len(p) for p in prompts], keep_kv=True)
    with torch.no_grad():
        decoder(torch.tensor([t for p in prompts for t in p]), packed.positions, packed)
    names = [tuple(p) for p in prompts]
    memory.store_prompts(packed, names)
    memory.admit(names if source is None else [names[i] for i in source])


def step(decoder, memory, tokens):
    with torch.no_grad():
        hidden = decoder(torch.tensor(tokens), memory.begin_step(), memory)
    memory.end_step()
    return hidden


def slots_for(decoder, slots, room):
    shape = decoder.config
    return SlotKVCache(shape.num_hidden_layers, slots, shape.num_key_value_heads, shape.head_dim, room, room)


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("heads, key_heads", HEADS)
@pytest.mark.parametrize("lengths", [[5], [4, 4], [1, 7, 3]])
def test_packed_attention_is_softmax_of_products_within_each_sequence(heads, key_heads, lengths):
    torch.manual_seed(0)
    n, width = sum(lengths), 8
    q, k, v = torch.randn(n, heads, width), torch.randn(n, key_heads, width), torch.randn(n, key_heads, width)
    seen, start = PackedAttention(lengths).attend(0, q, k, v), 0
    for length in lengths:
        for i in range(start, start + length):
            for head in range(heads):
                keys, values = k[start : i + 1, head * key_heads // heads], v[start : i + 1, head * key_heads // heads]
                weight = torch.softmax(keys @ q[i, head] / width**0.5, 0)
                assert torch.allclose(seen[i, head], weight @ values, atol=1e-5)
        start += length


def test_packed_positions_restart_with_each_sequence():
    assert PackedAttention([3, 1, 2]).positions.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("heads, key_heads", HEADS)
def test_token_by_token_through_slots_equals_the_whole_at_once(tiny_decoder, heads, key_heads):
    decoder = tiny_decoder(num_attention_heads=heads, num_key_value_heads=key_heads)
    whole = sequences([10, 6, 14])
    prompts = [ids[:-5] for ids in whole]  # 5, 1 and 9 tokens long
    memory = slots_for(decoder, 3, 40)  # more room than a step reaches at first
    prefill(decoder, memory, prompts)
    for t in range(-5, 0):
        together = step(decoder, memory, [ids[t] for ids in whole])
        for ids, hidden in zip(whole, together, strict=True):
            assert torch.allclose(hidden, hidden_of(decoder, ids)[t], atol=1e-5)


def test_one_prompt_is_read_once_and_serves_several_slots(tiny_decoder):
    decoder = tiny_decoder()
    first, second = sequences([6, 3])
    memory = slots_for(decoder, 4, 16)
    prefill(decoder, memory, [first, second], source=[1, 0, 0])
    assert (memory.busy, memory.free) == (3, 1)
    hidden = step(decoder, memory, [7, 8, 9])
    for got, ids in zip(hidden, [[*second, 7], [*first, 8], [*first, 9]], strict=True):
        assert torch.allclose(got, hidden_of(decoder, ids)[-1], atol=1e-5)


def test_a_slot_that_is_filled_again_has_forgotten_what_it_held(tiny_decoder):
    decoder = tiny_decoder()
    long, short, other = sequences([20, 2, 5])
    memory = slots_for(decoder, 2, 32)
    prefill(decoder, memory, [long, other])
    step(decoder, memory, [1, 2])
    memory.release(torch.tensor([True, False]))  # the long one leaves, `other` takes its slot
    prefill(decoder, memory, [short])
    hidden = step(decoder, memory, [3, 4])
    assert torch.allclose(hidden[0], hidden_of(decoder, [*other, 2, 3])[-1], atol=1e-5)
    assert torch.allclose(hidden[1], hidden_of(decoder, [*short, 4])[-1], atol=1e-5)


@given(st.data())
def test_release_keeps_what_stays_dense_and_whole(data):
    n = data.draw(st.integers(1, 9))
    prompt_of = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    done = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    used = sorted(set(prompt_of))
    memory = SlotKVCache(num_layers=1, num_slots=9, num_kv_heads=1, head_dim=1, prompt_capacity=2, capacity=2)
    read = PackedAttention([1] * len(used), keep_kv=True)
    names = torch.tensor(used, dtype=torch.float)[:, None, None]  # a prompt's keys say which one it is
    read.attend(0, names, names, names)
    memory.store_prompts(read, used)
    memory.admit(prompt_of)
    memory.keys[0][:n] = torch.arange(1.0, n + 1)[:, None, None, None]
    memory.lengths[:n] = 1 + torch.arange(n)
    order = memory.release(torch.tensor(done)).tolist()
    assert sorted(order) == [i for i in range(n) if not done[i]]
    assert memory.busy == len(order)
    assert memory.keys[0][: len(order), 0, 0, 0].tolist() == [i + 1 for i in order]
    assert memory.lengths[: len(order)].tolist() == [1 + i for i in order]
    assert set(memory.prompt_names) == {prompt_of[i] for i in order}
    assert len(memory.prompt_names) == len(set(memory.prompt_names))
    assert [memory.prompt_names[place] for place in memory.prompt_of[: len(order)]] == [prompt_of[i] for i in order]
    behind = memory.prompt_keys[0][memory.prompt_of[: len(order)], 0, 0, 0]
    assert behind.tolist() == [prompt_of[i] for i in order]


def test_prompts_whose_keys_were_not_kept_cannot_be_admitted(tiny_decoder):
    memory = slots_for(tiny_decoder(), 1, 8)
    with pytest.raises(ValueError, match="keep=True"):
        memory.store_prompts(PackedAttention([3]), ["it"])


@pytest.mark.skipif(sys.platform != "linux", reason="where the C library is glibc")
@pytest.mark.fault("memory grows")
def test_freed_memory_goes_back_to_the_system():
    code = (
        "import torch; from schoolhouse.model.kv_cache import give_back\n"
        "def mine(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "rows = [torch.zeros(100_000) for _ in range(200)]\n"
        "kept = [torch.zeros(10) for _ in range(10)]; del rows; before = mine(); give_back(); print(before - mine())"
    )
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(said.stdout) > 50e6
