"""The batch engine: sequences sampled together equal those sampled alone, and a cancelled one frees its slot."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.logprobs import TokenLogprob
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.serve.batch_engine import BatchEngine, CancellablePolicy, EngineClosed, PendingRequest, QueueFull
from schoolhouse.types import Key, Message, Problem, Rollout, SchoolError


@pytest.fixture(scope="module")
def policy(sft_model: Callable[[str], Path]) -> Policy:
    return Policy.load(sft_model("school:chain?steps=2&styles=full=100"), "float32")


@pytest.fixture
def engine(policy: Policy) -> Iterator[BatchEngine]:
    engine = BatchEngine(lambda: policy, max_num_seqs=4, max_queued_seqs=4)
    yield engine
    engine.close()


def make_prompt(policy: Policy, number: int, text: str = "Start at 7. Add 5. Take 3.") -> Rollout:
    return policy.conversation.prompt_rollout(Problem(f"r{number}", (Message("user", text),), ""), Key(number, "t"))


def make_request(policy: Policy, number: int, max_new_tokens: int = 24, **options: Any) -> PendingRequest:
    sampling_params = options.pop("sampling_params", SamplingParams())
    return PendingRequest(make_prompt(policy, number), max_new_tokens, sampling_params, **options)


async def read_all(request: PendingRequest) -> tuple[list[TokenLogprob], Rollout]:
    tokens: list[TokenLogprob] = []
    async for items in request.stream():
        for item in items:
            if isinstance(item, Rollout):
                return tokens, item
            tokens.append(item)
    raise AssertionError("the stream ended without its rollout")


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_sequences_sampled_together_are_those_sampled_alone(policy: Policy, engine: BatchEngine):
    async def sample() -> list[tuple[list[TokenLogprob], Rollout]]:
        requests = [make_request(policy, number) for number in range(7)]
        engine.submit(requests)
        return await asyncio.gather(*map(read_all, requests))

    for number, (tokens, rollout) in enumerate(run(sample)):
        prompt = make_prompt(policy, number)
        (alone,) = policy.extend([prompt], 24)
        assert rollout.tokens == alone.tokens
        assert tuple(token.token for token in tokens) == alone.tokens[len(prompt) :]


def test_a_cancelled_request_frees_its_slot(policy: Policy, engine: BatchEngine):
    """All four slots are taken by long requests, which are cancelled; a fifth request then gets a slot."""

    async def sample() -> Rollout:
        long_requests = [make_request(policy, number, 120, stop_texts=("never",)) for number in range(4)]
        engine.submit(long_requests)
        for request in long_requests:
            await request.ready.wait()
            request.cancelled = True
        last = make_request(policy, 9, 3)
        engine.submit([last])
        return (await read_all(last))[1]

    assert len(run(sample).last_turn()) <= 3


def test_a_stop_text_ends_a_completion(policy: Policy, engine: BatchEngine):
    async def sample() -> Rollout:
        request = make_request(policy, 0, 40, stop_texts=("=",), sampling_params=SamplingParams(0.0))
        engine.submit([request])
        return (await read_all(request))[1]

    rollout = run(sample)
    text = policy.conversation.tokenizer.decode(rollout.last_turn())
    assert text.endswith("=")
    assert text.count("=") == 1


def test_a_thought_is_closed_at_its_budget(policy: Policy, engine: BatchEngine):
    prompt = policy.conversation.prefill_thought(make_prompt(policy, 0), "7+5")

    async def sample() -> tuple[list[TokenLogprob], Rollout]:
        request = PendingRequest(prompt, 24, SamplingParams(0.0), thinking_budget=3)
        engine.submit([request])
        return await read_all(request)

    tokens, rollout = run(sample)
    _, end, closed = policy.conversation.thought_span(rollout)
    assert closed
    assert end == len(prompt) + 3
    assert tuple(token.token for token in tokens) == rollout.tokens[len(prompt) :]
    (alone,) = policy.extend([prompt], 24, thinking_budget=3, temperature=0.0)
    assert rollout.tokens == alone.tokens


def test_the_likeliest_tokens_are_reported(policy: Policy, engine: BatchEngine):
    async def sample() -> list[TokenLogprob]:
        request = make_request(policy, 0, 6, top_logprobs=3, sampling_params=SamplingParams(0.0))
        engine.submit([request])
        return (await read_all(request))[0]

    for token in run(sample):
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0] == (token.token, pytest.approx(token.logprob, abs=1e-4))


def test_a_full_queue_refuses_a_request_and_accepts_it_later(policy: Policy, engine: BatchEngine):
    async def sample() -> None:
        requests = [make_request(policy, number, 40) for number in range(8)]
        engine.submit(requests)
        with pytest.raises(QueueFull, match="queue is full .* of 4 places are taken, 1 needed"):
            engine.submit([make_request(policy, 8)])
        await asyncio.gather(*map(read_all, requests))
        engine.submit([late := make_request(policy, 9)])
        await read_all(late)

    run(sample)


def test_more_than_slots_and_queue_can_hold_is_an_error(policy: Policy, engine: BatchEngine):
    async def sample() -> None:
        capacity = engine.max_num_seqs + engine.max_queued_seqs
        engine.submit([make_request(policy, number) for number in range(capacity + 1)])

    with pytest.raises(SchoolError, match="asks for 9 completions, but the limit is 8") as refused:
        run(sample)
    assert not isinstance(refused.value, QueueFull)


def test_an_error_in_one_request_does_not_end_the_others(policy: Policy, engine: BatchEngine):
    async def sample() -> tuple[Rollout, Any]:
        valid, invalid = make_request(policy, 0), make_request(policy, 1, stop_texts=("\ud800",))
        engine.submit([valid, invalid])
        output, error = await asyncio.gather(read_all(valid), read_all(invalid), return_exceptions=True)
        assert not isinstance(output, BaseException)
        return output[1], error

    rollout, error = run(sample)
    assert isinstance(error, SchoolError)
    assert rollout.tokens == policy.extend([make_prompt(policy, 0)], 24)[0].tokens
    assert engine.error is None


def test_a_cancelled_policy_samples_nothing(policy: Policy):
    cancellable = CancellablePolicy(policy)
    (rollout,) = cancellable.extend([make_prompt(policy, 0)], 24)
    assert rollout.tokens == policy.extend([make_prompt(policy, 0)], 24)[0].tokens
    assert cancellable.max_seq_len == policy.max_seq_len
    cancellable.cancel()
    with pytest.raises(EngineClosed, match="client has disconnected"):
        cancellable.extend([make_prompt(policy, 0)], 24)


def test_cancelling_ends_a_running_call_with_its_next_token(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    cancellable, extend = CancellablePolicy(policy), policy.extend

    def cancel_at_the_first_token(*args: Any, on_token: Any, **options: Any) -> list[Rollout]:
        def cancel_and_forward(*token: Any) -> bool:
            cancellable.cancel()
            return on_token(*token)

        return extend(*args, on_token=cancel_and_forward, **options)

    monkeypatch.setattr(policy, "extend", cancel_at_the_first_token)
    (rollout,) = cancellable.extend([make_prompt(policy, 0)], 24)
    assert len(rollout) == len(make_prompt(policy, 0)) + 1


def test_closing_finishes_all_accepted_requests(policy: Policy):
    engine = BatchEngine(lambda: policy, max_num_seqs=2)

    async def sample() -> None:
        requests = [make_request(policy, number, 24) for number in range(5)]
        engine.submit(requests)
        await requests[0].ready.wait()
        closing = asyncio.to_thread(engine.close)
        finished = await asyncio.gather(closing, *map(read_all, requests))
        assert len(finished) == 6
        with pytest.raises(EngineClosed, match="shutting down"):
            engine.submit([make_request(policy, 9)])

    run(sample)


def test_a_sampler_that_dies_ends_every_request(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(BatchEngine, "on_logits", fail)
    engine = BatchEngine(lambda: policy)

    async def sample() -> None:
        engine.submit([request := make_request(policy, 0)])
        with pytest.raises(EngineClosed, match="no more memory"):
            await read_all(request)
        with pytest.raises(EngineClosed, match="no more memory"):
            engine.submit([make_request(policy, 1)])

    run(sample)


def test_an_error_while_loading_is_raised_at_once():
    def load() -> Policy:
        raise SchoolError("no such folder")

    with pytest.raises(SchoolError, match="no such folder"):
        BatchEngine(load)
