"""Steps of fixed shape say the same as steps that are cut to what is needed; what CUDA captures is such a step."""

import pytest
import torch

from schoolhouse.model.cuda_graph import GraphedStep, StaticBfloat16SlotKVCache, StaticSlotKVCache, use_cuda_graphs
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams

PROMPTS = [[5, 9, 13, 2]] * 7 + [[60]] * 3 + [[44, 3, 21, 8, 30, 7, 7], [1, 2]] + [[8, 8, 8]] * 5


@pytest.mark.parametrize("slots", [1, 3, 9, 17, 64])
def test_fixed_shapes_change_nothing_that_is_said(tiny_decoder, asked, slots):
    decoder, prefixes = tiny_decoder(), asked(PROMPTS)
    plain, fixed = (
        extend(decoder, prefixes, 20, (4, 7), 0, slots=slots, attention=(PackedAttention, memory))
        for memory in (SlotKVCache, StaticSlotKVCache)
    )
    assert [rollout.tokens for rollout in fixed] == [rollout.tokens for rollout in plain]
    for one, other in zip(plain, fixed, strict=True):
        said = [i for i, written in enumerate(one.loss_mask) if written]
        assert [other.logprob[i] for i in said] == pytest.approx([one.logprob[i] for i in said], abs=1e-4)


def test_half_the_memory_says_nearly_the_same(tiny_decoder, asked):
    decoder, prefixes = tiny_decoder(), asked(PROMPTS)
    plain, half = (
        extend(decoder, prefixes, 1, (), 0, params=SamplingParams(0.0), attention=(PackedAttention, memory))
        for memory in (StaticSlotKVCache, StaticBfloat16SlotKVCache)
    )
    for one, other in zip(plain, half, strict=True):
        assert other.logprob[-1] == pytest.approx(one.logprob[-1], abs=0.1)


class Watched:
    """What steps were asked to compute."""

    def __init__(self, memory: StaticSlotKVCache) -> None:
        self.memory, self.shapes = memory, set()

    def __call__(self, token_W: torch.Tensor) -> torch.Tensor:
        positions = self.memory.begin_step()
        self.shapes.add((len(token_W), len(positions), self.memory._own_hidden.shape, self.memory.sitter.shape))
        return torch.zeros(len(token_W), 3)


def test_shapes_change_with_the_width_alone():
    """All that a captured step reads stays where it is and as large as it is, however many slots are busy."""
    memory = StaticSlotKVCache(1, 32, 1, 4, prompt_capacity=4, capacity=8, max_prompts=2)
    read = PackedAttention([2, 3], keep_kv=True)
    assert read.kept_kv is not None
    read.kept_kv.append((torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)))
    memory.store_prompts(read, ["a", "b"])
    memory.admit(["a"] * 16 + ["b"] * 16)
    step = Watched(memory)
    replay = GraphedStep(step, memory)
    kept = [id(tensor) for tensor in (memory.lengths, memory.rank, memory.prompt_of, memory.sitter, *memory.keys)]
    for _ in range(32):
        busy = memory.busy
        assert len(replay(torch.zeros(busy, dtype=torch.long))) == busy
        memory.end_step()
        memory.release(torch.tensor([i == busy // 2 for i in range(busy)]))
        if not memory.busy:
            break
        memory.lengths[: memory.busy] %= 7
    assert kept == [
        id(tensor) for tensor in (memory.lengths, memory.rank, memory.prompt_of, memory.sitter, *memory.keys)
    ]
    assert {width for width, *_ in step.shapes} == {8, 16, 32}
    assert len(step.shapes) == 3


@pytest.mark.parametrize(("busy", "width"), [(1, 8), (8, 8), (9, 16), (33, 64), (100, 100)])
def test_widths_are_few(busy, width):
    memory = StaticSlotKVCache(1, 100, 1, 4, prompt_capacity=4, capacity=8, max_prompts=1)
    assert GraphedStep(lambda tokens: tokens, memory).padded_width(busy) == width


def test_graphs_are_for_cuda_and_asked_for(monkeypatch):
    monkeypatch.setenv("SCHOOLHOUSE_GRAPHS", "1")
    assert not use_cuda_graphs(torch.device("cpu"))
    assert use_cuda_graphs(torch.device("cuda"))
    monkeypatch.delenv("SCHOOLHOUSE_GRAPHS")
    assert not use_cuda_graphs(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_steps_say_the_same(tiny_decoder, asked, monkeypatch):
    decoder, prefixes, capture, widths = tiny_decoder().cuda(), asked(PROMPTS), GraphedStep._capture, []
    monkeypatch.setattr(GraphedStep, "_capture", lambda self, width: widths.append(width) or capture(self, width))
    plain, captured = (
        extend(decoder, prefixes, 20, (4, 7), 0, attention=(PackedAttention, memory))
        for memory in (SlotKVCache, StaticSlotKVCache)
    )
    assert widths
    assert [rollout.tokens for rollout in captured] == [rollout.tokens for rollout in plain]
