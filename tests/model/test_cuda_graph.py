"""Steps of fixed shape give the same tokens as sliced steps, and keep what a CUDA graph needs to be replayed."""

import pytest
import torch

from schoolhouse.model.cuda_graph import GraphedStep, StaticBfloat16SlotKVCache, StaticSlotKVCache, use_cuda_graphs
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams

PROMPTS = [[5, 9, 13, 2]] * 7 + [[60]] * 3 + [[44, 3, 21, 8, 30, 7, 7], [1, 2]] + [[8, 8, 8]] * 5


@pytest.mark.parametrize("num_slots", [1, 3, 9, 17, 64])
def test_fixed_shapes_give_the_same_tokens(tiny_decoder, make_prompts, num_slots):
    decoder, prompts = tiny_decoder(), make_prompts(PROMPTS)
    sliced, static = (
        extend(decoder, prompts, 20, (4, 7), 0, num_slots=num_slots, attention=(PackedAttention, cache_class))
        for cache_class in (SlotKVCache, StaticSlotKVCache)
    )
    assert [rollout.tokens for rollout in static] == [rollout.tokens for rollout in sliced]
    for expected, rollout in zip(sliced, static, strict=True):
        start = expected.turns[0]
        assert rollout.logprob[start:] == pytest.approx(expected.logprob[start:], abs=1e-4)


def test_a_bfloat16_cache_gives_nearly_the_same_log_probabilities(tiny_decoder, make_prompts):
    decoder, prompts = tiny_decoder(), make_prompts(PROMPTS)
    full, half = (
        extend(decoder, prompts, 1, (), 0, params=SamplingParams(0.0), attention=(PackedAttention, cache_class))
        for cache_class in (StaticSlotKVCache, StaticBfloat16SlotKVCache)
    )
    for expected, rollout in zip(full, half, strict=True):
        assert rollout.logprob[-1] == pytest.approx(expected.logprob[-1], abs=0.1)


class RecordingStep:
    """A step that records the shapes that it works on."""

    def __init__(self, cache: StaticSlotKVCache) -> None:
        self.cache, self.shapes = cache, set()

    def __call__(self, token_W: torch.Tensor) -> torch.Tensor:
        positions = self.cache.begin_step()
        assert self.cache.table is not None
        self.shapes.add((len(token_W), len(positions), self.cache._full_mask.shape, self.cache.table.shape))
        return torch.zeros(len(token_W), 3)


def test_shapes_change_with_the_width_alone():
    """The tensors of a captured step stay at their place and keep their size, however many slots are busy."""
    cache = StaticSlotKVCache(1, 32, 1, 4, prompt_capacity=4, capacity=8, max_prompts=2)
    packed = PackedAttention([2, 3], keep_kv=True)
    assert packed.kept_kv is not None
    packed.kept_kv.append((torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)))
    cache.store_prompts(packed, ["a", "b"])
    cache.admit(["a"] * 16 + ["b"] * 16)
    step = RecordingStep(cache)
    graphed = GraphedStep(step, cache)

    def tensor_ids():
        return [id(x) for x in (cache.lengths, cache.column, cache.prompt_of, cache.table, *cache.keys)]

    before = tensor_ids()
    for _ in range(32):
        busy = cache.busy
        assert len(graphed(torch.zeros(busy, dtype=torch.long))) == busy
        cache.end_step()
        cache.release(torch.tensor([i == busy // 2 for i in range(busy)]))
        if not cache.busy:
            break
        cache.lengths[: cache.busy] %= 7
    assert tensor_ids() == before
    assert {width for width, *_ in step.shapes} == {8, 16, 32}
    assert len(step.shapes) == 3


@pytest.mark.parametrize(("busy", "width"), [(1, 8), (8, 8), (9, 16), (33, 64), (100, 100)])
def test_widths_are_powers_of_two_or_all_slots(busy, width):
    cache = StaticSlotKVCache(1, 100, 1, 4, prompt_capacity=4, capacity=8, max_prompts=1)
    assert GraphedStep(lambda tokens: tokens, cache).padded_width(busy) == width


def test_graphs_need_cuda_and_the_environment_variable(monkeypatch):
    monkeypatch.setenv("SCHOOLHOUSE_GRAPHS", "1")
    assert not use_cuda_graphs(torch.device("cpu"))
    assert use_cuda_graphs(torch.device("cuda"))
    monkeypatch.delenv("SCHOOLHOUSE_GRAPHS")
    assert not use_cuda_graphs(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_steps_give_the_same_tokens(tiny_decoder, make_prompts, monkeypatch):
    decoder, prompts, capture, widths = tiny_decoder().cuda(), make_prompts(PROMPTS), GraphedStep._capture, []
    monkeypatch.setattr(GraphedStep, "_capture", lambda self, width: widths.append(width) or capture(self, width))
    sliced, captured = (
        extend(decoder, prompts, 20, (4, 7), 0, attention=(PackedAttention, cache_class))
        for cache_class in (SlotKVCache, StaticSlotKVCache)
    )
    assert widths
    assert [rollout.tokens for rollout in captured] == [rollout.tokens for rollout in sliced]
