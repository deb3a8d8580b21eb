"""The compiled kernel sees what memory.py's torch sees, through groups of any size, releases and refills."""

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
    best_attention,
)

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
HEADS = [(3, 3), (4, 2), (6, 1)]  # query and key heads
WIDTH = 32


def bfloat16(x):
    """Rounded, as a decoder that computes in bfloat16 makes keys and values."""
    return x.bfloat16().float()


def filled(kind, lengths, sizes, key_heads, seed=0):
    """Slots with prompts of these lengths, `sizes` slots of each."""
    generator = torch.Generator().manual_seed(seed)
    memory = kind(1, sum(sizes), key_heads, WIDTH, prompt_capacity=max(lengths), capacity=40)
    read = PackedAttention(lengths, keep_kv=True)
    k, v = (bfloat16(torch.randn(sum(lengths), key_heads, WIDTH, generator=generator)) for _ in range(2))
    read.attend(0, torch.zeros(sum(lengths), key_heads, WIDTH), k, v)
    memory.store_prompts(read, list(range(len(lengths))))
    memory.admit([name for name, size in enumerate(sizes) for _ in range(size)])
    return memory


def step(memory, heads, key_heads, generator):
    n = memory.busy
    q = torch.randn(n, heads, WIDTH, generator=generator)
    k, v = (bfloat16(torch.randn(n, key_heads, WIDTH, generator=generator)) for _ in range(2))
    positions = memory.begin_step()
    seen = memory.attend(0, q, k, v)
    memory.end_step()
    return positions, seen


@pytest.mark.parametrize("kind", [NativeSlotKVCache, NativeBfloat16SlotKVCache])
@pytest.mark.parametrize("heads, key_heads", HEADS)
def test_the_kernel_sees_what_torch_sees(kind, heads, key_heads):
    lengths, sizes = [70, 1, 33, 16], [20, 1, 3, 16]
    ours, theirs = (filled(cls, lengths, sizes, key_heads) for cls in (kind, SlotKVCache))
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    leave = torch.Generator().manual_seed(2)
    for i in range(36):
        place, seen = step(ours, heads, key_heads, one)
        expected_place, expected = step(theirs, heads, key_heads, other)
        assert torch.equal(place, expected_place)
        assert torch.allclose(seen, expected, atol=2e-6)
        if i % 7 == 3:
            done = torch.rand(ours.busy, generator=leave) < 0.3
            assert torch.equal(ours.release(done), theirs.release(done))
        if i == 20:
            for memory in (ours, theirs):
                memory.admit([memory.prompt_names[0]] * memory.free)


def test_a_slot_does_not_notice_its_neighbours():
    def seen(sizes):
        memory, generator, rows = filled(NativeBfloat16SlotKVCache, [70, 33], sizes, 2), torch.Generator(), []
        for i in range(20):
            q, k, v = (torch.randn(h, WIDTH, generator=generator.manual_seed(i)) for h in (4, 2, 2))
            memory.begin_step()
            rows.append(memory.attend(0, *(x.expand(memory.busy, -1, -1) for x in (q, k, v)))[0])
            memory.end_step()
        return torch.stack(rows)

    assert torch.equal(seen([1, 1]), seen([19, 5]))


@pytest.mark.parametrize("heads, key_heads", HEADS)
@pytest.mark.parametrize("lengths", [[1], [70], [5, 64, 1, 129, 33]])
def test_packed_sequences_and_their_gradient_are_those_of_torch(heads, key_heads, lengths):
    torch.manual_seed(0)
    n = sum(lengths)
    inputs = [torch.randn(n, h, WIDTH, requires_grad=True) for h in (heads, key_heads, key_heads)]
    towards = torch.randn(n, heads, WIDTH)
    results = []
    for kind in (NativePackedAttention, PackedAttention):
        seen = kind(lengths).attend(0, *inputs)
        results.append([seen, *torch.autograd.grad(seen, inputs, towards)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("heads, key_heads", HEADS)
def test_a_prompt_that_is_there_once_is_seen_by_its_whole_family(heads, key_heads):
    torch.manual_seed(0)
    # (prompt, answers): the first answer of a family stands behind the prompt itself
    families = [(37, [5, 64, 1]), (1, [3, 3]), (70, [33])]
    compact, prefixes, source, start = [], [], [], 0
    for prompt, answers in families:
        first = start
        for i, answer in enumerate(answers):
            own = answer if i else prompt + answer
            compact.append(own)
            prefixes.append((first, prompt) if i else (0, 0))
            source += [*range(first, first + prompt), *range(start if i else first + prompt, start + own)]
            start += own
    inputs = [torch.randn(start, h, WIDTH, requires_grad=True) for h in (heads, key_heads, key_heads)]
    shared = NativePackedAttention(compact, prefixes=prefixes)
    seen = shared.attend(0, *inputs)
    unrolled = PackedAttention([prompt + answer for prompt, answers in families for answer in answers])
    expected = unrolled.attend(0, *(x[source] for x in inputs))
    assert torch.equal(shared.positions[source], unrolled.positions)
    assert torch.allclose(seen[source], expected, atol=1e-5)
    towards = torch.randn_like(expected)
    gathered = torch.zeros_like(seen).index_add(0, torch.tensor(source), towards)
    ours, theirs = (torch.autograd.grad(x, inputs, t) for x, t in ((seen, gathered), (expected, towards)))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=3e-5)


def test_the_best_memories_fit_the_head_and_the_number_type():
    assert best_attention(64, torch.bfloat16, CPU) == (NativePackedAttention, NativeBfloat16SlotKVCache)
    assert best_attention(64, torch.float32, CPU) == (NativePackedAttention, NativeSlotKVCache)
    assert best_attention(48, torch.float32, CPU) == (PackedAttention, SlotKVCache)
    assert best_attention(64, torch.bfloat16, torch.device("cuda")) == (PackedAttention, SlotKVCache)


@pytest.mark.parametrize("setting", ["CC=false", "CC=no-such-compiler", "SCHOOLHOUSE_NATIVE=0"])
@pytest.mark.fault("no compiler, no GPU")
def test_without_a_compiler_torch_attends(setting, tmp_path):
    code = (
        "import torch; from schoolhouse.model.native_attention import best_memories; "
        "print(best_memories(64, torch.float32, torch.device('cpu'))[1].__name__)"
    )
    words = ["env", setting, f"XDG_CACHE_HOME={tmp_path}", sys.executable, "-c", code]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "Slots"
    assert not list(tmp_path.rglob("*.so"))
