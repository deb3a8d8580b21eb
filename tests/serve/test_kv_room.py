"""The shape of the KV cache follows the memory and the requests; what a request gets does not depend on the shape."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schoolhouse.model.device import free_memory
from schoolhouse.model.packed_decoder import packed_bytes
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.serve import kv_room
from schoolhouse.serve.batch_engine import BatchEngine, PendingRequest
from schoolhouse.serve.kv_room import CacheShape, KVRoom, plan_room, slot_bytes_per_token
from schoolhouse.types import Key, Message, Problem, Rollout, SchoolError


@pytest.fixture(scope="module")
def policy(sft_model: Callable[[str], Path]) -> Policy:
    return Policy.load(sft_model("school:chain?steps=2&styles=full=100"), "float32")


@pytest.fixture
def room_for(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the memory of this machine to a number of tokens in the KV cache of the policy."""

    def set_memory(num_tokens: int) -> None:
        monkeypatch.setattr(kv_room, "MIN_USUAL_LEN", 64)
        monkeypatch.setattr(kv_room, "free_memory", lambda _: 2 * num_tokens * slot_bytes_per_token(policy))

    return set_memory


def test_a_small_model_has_all_slots_with_its_whole_context(policy: Policy):
    room = plan_room(policy, 64, None)
    assert room.usual == room.shape_for(1) == room.shape_for(256) == CacheShape(64, 256)
    assert (room.max_model_len, room.default_len(200)) == (256, 256)
    assert room.summary().startswith("KV cache: 64 sequences of 256 tokens; the cache uses at most ")


def test_a_large_model_has_many_usual_slots_or_a_few_long_ones():
    """Qwen2.5-0.5B in float32 on a machine with 20 GB: 64 slots of 32,768 tokens would need 103 GB."""
    room = KVRoom(64, 32_768, 32_768, bytes_per_token=4 * 24 * 2 * 64 * 4, budget=10 * 10**9, free=20 * 10**9)
    shapes = [room.shape_for(num_tokens) for num_tokens in (1, 3_000, 20_000, 32_768)]
    assert shapes[0] == CacheShape(64, 3_178)
    assert shapes[-1] == CacheShape(6, 32_768)
    assert all(shape.num_seqs * shape.max_len * room.bytes_per_token <= room.budget for shape in shapes)
    assert room.summary() == (
        "KV cache: 64 sequences of 3,178 tokens, or 6 of 32,768 tokens for requests that ask for more; the cache uses "
        "at most 10.0 GB of 20.0 GB of free memory"
    )


def test_a_request_without_a_length_gets_the_usual_length_or_what_its_prompt_needs():
    room = KVRoom(4, 1_000, 1_000, bytes_per_token=1, budget=1_000, free=2_000)
    assert room.usual == CacheShape(1, 1_000)  # fewer than MIN_USUAL_LEN tokens are never usual
    room = KVRoom(4, 100_000, 100_000, bytes_per_token=1, budget=100_000, free=200_000)
    assert room.usual == CacheShape(4, 25_000)
    assert [room.default_len(tokens) for tokens in (10, 12_500, 12_501, 99_999)] == [25_000, 25_000, 50_000, 100_000]


def test_the_context_is_shorter_where_memory_is_small(policy: Policy, room_for: Callable[[int], None]):
    room_for(100)
    room = plan_room(policy, 4, None)
    assert (room.max_model_len, room.usual) == (100, CacheShape(1, 64))
    assert "(the memory is too small for the context length of 256 tokens)" in room.summary()


@pytest.mark.parametrize(("num_tokens", "max_model_len", "needed"), [(63, None, 64), (100, 200, 200)])
def test_what_does_not_fit_is_an_error(
    policy: Policy, room_for: Callable[[int], None], num_tokens: int, max_model_len: int | None, needed: int
):
    room_for(num_tokens)
    with pytest.raises(SchoolError, match=f"a sequence of {needed} tokens needs .* set --max_model_len"):
        plan_room(policy, 4, max_model_len)


def test_the_caches_of_other_models_are_left_out(policy: Policy, room_for: Callable[[int], None]):
    room_for(1_000)
    bytes_per_token = slot_bytes_per_token(policy)
    assert plan_room(policy, 4, None, reserved=1_000 * bytes_per_token).budget == 500 * bytes_per_token


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_packed_weights_are_left_out(policy: Policy, room_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy, "sampling_weights", "float32")
    packed = packed_bytes(policy.decoder, "float32", policy.dtype, exact=False)
    bytes_per_token = slot_bytes_per_token(policy)
    room_for(1_000 + round(packed) // (2 * bytes_per_token))
    assert packed > 10 * bytes_per_token
    assert plan_room(policy, 4, None).budget == pytest.approx(1_000 * bytes_per_token, abs=bytes_per_token)


def test_the_size_of_a_token_is_that_of_the_stores(policy: Policy):
    config = policy.decoder.config
    cache = policy.slot_cache(
        config.num_hidden_layers, 3, config.num_key_value_heads, config.head_dim, prompt_capacity=64, capacity=64
    )
    stores = [store for value in vars(cache).values() if isinstance(value, list) for store in value]
    assert sum(store.nbytes for store in stores) == 3 * 64 * slot_bytes_per_token(policy)


def test_the_free_memory_is_a_plausible_number():
    assert 1 << 20 < free_memory(torch.device("cpu")) < 1 << 50


def make_prompt(policy: Policy, number: int) -> Rollout:
    problem = Problem(f"r{number}", (Message("user", "Start at 7. Add 5. Take 3."),), "")
    return policy.conversation.prompt_rollout(problem, Key(number, "t"))


def make_request(policy: Policy, number: int, max_new_tokens: int) -> PendingRequest:
    return PendingRequest(make_prompt(policy, number), max_new_tokens, SamplingParams(1.5), stop_texts=("never",))


async def read_rollout(request: PendingRequest) -> Rollout:
    async for items in request.stream():
        if isinstance(items[-1], Rollout):
            return items[-1]
    raise AssertionError("the stream ended without its rollout")


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_long_and_short_requests_get_the_same_tokens_as_alone(
    policy: Policy, room_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    """Memory for 4 sequences of 70 tokens, or 1 of 256: the cache changes its shape in between."""
    room_for(4 * 70)
    shapes, serve = [], policy.serve

    def record(source: Any, num_slots: int, max_total_tokens: int, *args: Any) -> None:
        shapes.append(CacheShape(num_slots, max_total_tokens))
        serve(source, num_slots, max_total_tokens, *args)

    monkeypatch.setattr(policy, "serve", record)
    engine = BatchEngine(lambda: policy, max_num_seqs=4)
    lengths = [20, 20, 150, 10, 10, 10, 200, 10]

    async def sample() -> list[Rollout]:
        requests = [make_request(policy, number, length) for number, length in enumerate(lengths)]
        engine.submit(requests[:4])
        await requests[0].ready.wait()
        engine.submit(requests[4:])
        return await asyncio.gather(*map(read_rollout, requests))

    sampled = run(sample)
    engine.close()
    for number, (rollout, length) in enumerate(zip(sampled, lengths, strict=True)):
        (alone,) = policy.extend([make_prompt(policy, number)], length, temperature=1.5)
        assert rollout.tokens == alone.tokens
    assert shapes[0] == shapes[-1] == CacheShape(4, 70)
    assert CacheShape(1, 256) in shapes
    assert all(shape.num_seqs * shape.max_len <= 4 * 70 for shape in shapes)


def test_a_cancelled_long_request_does_not_block_the_queue(policy: Policy, room_for: Callable[[int], None]):
    room_for(4 * 70)
    engine = BatchEngine(lambda: policy, max_num_seqs=4)

    async def sample() -> Rollout:
        long, short = make_request(policy, 0, 200), make_request(policy, 1, 5)
        long.cancelled = True
        engine.submit([long, short])
        return await read_rollout(short)

    assert len(run(sample).last_turn()) <= 5
    engine.close()
