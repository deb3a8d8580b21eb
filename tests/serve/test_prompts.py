"""The sizes of prompts are checked before the prompts are encoded."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.policy.policy import Policy
from schoolhouse.serve import kv_room
from schoolhouse.serve.api_schema import ChatCompletionRequest, CompletionRequest, InvalidRequest
from schoolhouse.serve.batch_engine import BatchEngine, QueueFull
from schoolhouse.serve.kv_room import slot_bytes_per_token
from schoolhouse.serve.prompts import PromptEncoder, chat_prompt, check_length, completion_prompts, longest_token
from schoolhouse.serve.responses import pending_completions
from schoolhouse.types import Message


@pytest.fixture(scope="module")
def policy(sft_model: Callable[[str], Path]) -> Policy:
    return Policy.load(sft_model("school:chain?steps=2&styles=full=100"), "float32")


@pytest.fixture
def engine(policy: Policy) -> Iterator[BatchEngine]:
    engine = BatchEngine(lambda: policy, max_num_seqs=4, max_queued_seqs=4)
    yield engine
    engine.close()


def encode(engine: BatchEngine, **body: Any) -> Any:
    """The ids of the prompt of a chat, or of each prompt of a completion."""

    async def run() -> Any:
        encoder, body_with_model = PromptEncoder(1, 60), {"model": "m", **body}
        try:
            if "messages" in body:
                return await chat_prompt(
                    engine,
                    engine.policy.conversation,
                    ChatCompletionRequest.model_validate(body_with_model),
                    encoder,
                )
            return await completion_prompts(engine, CompletionRequest.model_validate(body_with_model), encoder)
        finally:
            encoder.close()

    return asyncio.run(run())


def test_a_request_is_refused_if_too_many_long_prompts_wait():
    async def run() -> list[Any]:
        encoder, release = PromptEncoder(max_waiting=1, timeout=60), Event()
        waiting = [asyncio.create_task(encoder.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull, match="1 requests with long prompts already wait"):
            await encoder.run(release.wait)
        release.set()
        results = [*await asyncio.gather(*waiting), await encoder.run(release.wait)]
        encoder.close()
        return results

    assert asyncio.run(run()) == [True] * 3


def test_a_long_prompt_has_a_time_limit():
    release = Event()

    async def run() -> None:
        encoder = PromptEncoder(max_waiting=1, timeout=0.05)
        try:
            await encoder.run(release.wait)
        finally:
            release.set()
            encoder.close()

    with pytest.raises(TimeoutError):
        asyncio.run(run())


@pytest.mark.parametrize("text", ["7+5=2", "7" * 200, "\U0001f600" * 1_000, "a" * 6_000])
def test_short_and_long_prompts_have_the_ids_of_the_conversation(engine: BatchEngine, text: str):
    conversation = engine.policy.conversation
    assert encode(engine, prompt=text) == [tuple(conversation.tokenizer.encode(text))]
    assert encode(engine, messages=[{"role": "user", "content": text}]) == conversation.prompt((Message("user", text),))


def test_an_oversized_prompt_is_never_encoded(engine: BatchEngine, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise AssertionError("the prompt was encoded")

    monkeypatch.setattr(Tokenizer, "encode_batch", fail)
    for body in ({"prompt": "a" * 100_000}, {"messages": [{"role": "user", "content": "a" * 100_000}]}):
        with pytest.raises(
            InvalidRequest, match="the context length is 256 tokens, but the prompt has 100,000 characters"
        ):
            encode(engine, **body)
    with pytest.raises(InvalidRequest, match="asks for 9 completions, but the limit is 8"):
        encode(engine, prompt=["a"] * 3, n=3)
    with pytest.raises(InvalidRequest, match="the prompt has 257 tokens"):
        encode(engine, prompt=[1] * 257)


def test_a_prompt_that_may_fit_is_encoded(policy: Policy):
    """No refusal by characters where the tokens would have fit: a text of only the longest token."""
    tokenizer = policy.conversation.tokenizer
    longest = max((tokenizer.decode([token]) for token in range(6, tokenizer.vocab_size)), key=len)
    text = longest * 256
    assert len(tokenizer.encode(text)) <= 2 * 256
    check_length(tokenizer, len(tokenizer.encode(text)), len(text), "prompt")


def test_no_limit_of_characters_where_one_token_stands_for_any_word(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    tokenizer = policy.conversation.tokenizer
    monkeypatch.setattr(tokenizer, "vocab", {"[UNK]": 0, "word": 1})
    longest_token.cache_clear()
    check_length(tokenizer, 1, 10**9, "prompt")
    longest_token.cache_clear()


def test_a_request_for_more_than_the_memory_says_so(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_room, "MIN_USUAL_LEN", 64)
    monkeypatch.setattr(kv_room, "free_memory", lambda _: 2 * 100 * slot_bytes_per_token(policy))
    engine = BatchEngine(lambda: policy)
    body = CompletionRequest(model="m", prompt=[1, 2], max_tokens=99)
    with pytest.raises(
        InvalidRequest, match=r"100 tokens \(the memory of this server has no room for the full context of 256"
    ):
        pending_completions(engine, body, [(1, 2)], 0, 0)
    engine.close()
