"""The C kernels compute what torch computes in kv_cache.py, through blocks of any size, releases and refills."""

import shutil
import subprocess
import sys

import pytest
import torch

from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.model.native_attention import (
    NativeBfloat16SlotKVCache,
    NativePackedAttention,
    NativeSlotKVCache,
)

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
HEADS = [(3, 3), (4, 2), (6, 1)]  # query and key heads
HEAD_DIM = 32


def rounded(x):
    """Rounded to bfloat16, as a decoder that computes in bfloat16 makes keys and values."""
    return x.bfloat16().float()


def filled_cache(cache_class, lengths, sizes, kv_heads, seed=0):
    """A cache with prompts of these lengths, and `sizes` slots of each."""
    generator = torch.Generator().manual_seed(seed)
    cache = cache_class(1, sum(sizes), kv_heads, HEAD_DIM, prompt_capacity=max(lengths), capacity=40)
    packed = PackedAttention(lengths, keep_kv=True)
    k, v = (rounded(torch.randn(sum(lengths), kv_heads, HEAD_DIM, generator=generator)) for _ in range(2))
    packed.attend(0, torch.zeros(sum(lengths), kv_heads, HEAD_DIM), k, v)
    cache.store_prompts(packed, list(range(len(lengths))))
    cache.admit([name for name, size in enumerate(sizes) for _ in range(size)])
    return cache


def random_step(cache, heads, kv_heads, generator):
    n = cache.busy
    q = torch.randn(n, heads, HEAD_DIM, generator=generator)
    k, v = (rounded(torch.randn(n, kv_heads, HEAD_DIM, generator=generator)) for _ in range(2))
    positions = cache.begin_step()
    out = cache.attend(0, q, k, v)
    cache.end_step()
    return positions, out


@pytest.mark.parametrize("cache_class", [NativeSlotKVCache, NativeBfloat16SlotKVCache])
@pytest.mark.parametrize("heads, kv_heads", HEADS)
def test_decode_attention_equals_that_of_torch(cache_class, heads, kv_heads):
    lengths, sizes = [70, 1, 33, 16], [20, 1, 3, 16]
    native, reference = (filled_cache(each, lengths, sizes, kv_heads) for each in (cache_class, SlotKVCache))
    native_generator, reference_generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    release_generator = torch.Generator().manual_seed(2)
    for i in range(36):
        positions, out = random_step(native, heads, kv_heads, native_generator)
        expected_positions, expected = random_step(reference, heads, kv_heads, reference_generator)
        assert torch.equal(positions, expected_positions)
        assert torch.allclose(out, expected, atol=2e-6)
        if i % 7 == 3:
            finished = torch.rand(native.busy, generator=release_generator) < 0.3
            assert torch.equal(native.release(finished), reference.release(finished))
        if i == 20:
            for cache in (native, reference):
                cache.admit([cache.prompt_names[0]] * cache.free)


def test_the_result_of_a_slot_does_not_depend_on_other_slots():
    def first_slot(sizes):
        cache, generator, rows = filled_cache(NativeBfloat16SlotKVCache, [70, 33], sizes, 2), torch.Generator(), []
        for i in range(20):
            q, k, v = (torch.randn(h, HEAD_DIM, generator=generator.manual_seed(i)) for h in (4, 2, 2))
            cache.begin_step()
            rows.append(cache.attend(0, *(x.expand(cache.busy, -1, -1) for x in (q, k, v)))[0])
            cache.end_step()
        return torch.stack(rows)

    assert torch.equal(first_slot([1, 1]), first_slot([19, 5]))


@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("lengths", [[1], [70], [5, 64, 1, 129, 33]])
def test_packed_attention_and_its_gradient_equal_those_of_torch(heads, kv_heads, lengths):
    torch.manual_seed(0)
    n = sum(lengths)
    inputs = [torch.randn(n, h, HEAD_DIM, requires_grad=True) for h in (heads, kv_heads, kv_heads)]
    grad_out = torch.randn(n, heads, HEAD_DIM)
    results = []
    for attention_class in (NativePackedAttention, PackedAttention):
        out = attention_class(lengths).attend(0, *inputs)
        results.append([out, *torch.autograd.grad(out, inputs, grad_out)])
    for native, expected in zip(*results, strict=True):
        assert torch.allclose(native, expected, atol=1e-5)


@pytest.mark.parametrize("heads, kv_heads", HEADS)
def test_all_sequences_of_a_group_attend_to_the_prompt_that_is_stored_once(heads, kv_heads):
    torch.manual_seed(0)
    # (prompt tokens, completion tokens): the first completion of a group stands behind the prompt itself
    groups = [(37, [5, 64, 1]), (1, [3, 3]), (70, [33])]
    lengths, prefixes, source, start = [], [], [], 0
    for prompt, completions in groups:
        group_start = start
        for i, completion in enumerate(completions):
            length = completion if i else prompt + completion
            lengths.append(length)
            prefixes.append((group_start, prompt) if i else (0, 0))
            own_start = start if i else group_start + prompt
            source += [*range(group_start, group_start + prompt), *range(own_start, start + length)]
            start += length
    inputs = [torch.randn(start, h, HEAD_DIM, requires_grad=True) for h in (heads, kv_heads, kv_heads)]
    shared = NativePackedAttention(lengths, prefixes=prefixes)
    out = shared.attend(0, *inputs)
    unshared = PackedAttention([prompt + completion for prompt, completions in groups for completion in completions])
    expected = unshared.attend(0, *(x[source] for x in inputs))
    assert torch.equal(shared.positions[source], unshared.positions)
    assert torch.allclose(out[source], expected, atol=1e-5)
    grad_expected = torch.randn_like(expected)
    grad_out = torch.zeros_like(out).index_add(0, torch.tensor(source), grad_expected)
    gradients = torch.autograd.grad(out, inputs, grad_out)
    expected_gradients = torch.autograd.grad(expected, inputs, grad_expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=3e-5)


@pytest.mark.parametrize("setting", ["CC=false", "CC=no-such-compiler", "SCHOOLHOUSE_NATIVE=0"])
@pytest.mark.fault("no compiler, no GPU")
def test_without_a_compiler_torch_computes_attention(setting, tmp_path):
    code = (
        "import torch; from schoolhouse.model.kernel_choice import best_attention; "
        "print(best_attention(64, torch.float32, torch.device('cpu'))[1].__name__)"
    )
    command = ["env", setting, f"XDG_CACHE_HOME={tmp_path}", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "SlotKVCache"
    assert not list(tmp_path.rglob("*.so"))
