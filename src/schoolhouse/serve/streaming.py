"""This file waits for the output of requests, and sends the output as a whole or as server-sent events.

If the client disconnects or a timeout is reached, the requests are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from schoolhouse.policy.logprobs import TokenLogprob
from schoolhouse.serve.api_schema import BaseCompletionRequest
from schoolhouse.serve.auth import error_body
from schoolhouse.serve.batch_engine import EngineClosed, PendingRequest
from schoolhouse.serve.responses import Usage, sse_event
from schoolhouse.types import Rollout, SchoolError

Output = tuple[list[TokenLogprob], Rollout]
"""The sampled tokens of one completion, and its finished rollout."""


async def collect(request: Request, pending: Sequence[PendingRequest], timeout: float) -> list[Output]:
    """Wait until all given requests are finished, and return their outputs.

    If the client disconnects or the timeout is reached, the requests are cancelled.
    """

    async def read_all(one: PendingRequest) -> Output:
        tokens: list[TokenLogprob] = []
        async for items in one.stream():
            tokens += [item for item in items if isinstance(item, TokenLogprob)]
            if isinstance(items[-1], Rollout):
                return tokens, items[-1]
        raise EngineClosed("the sampler of this server has stopped; start the server again")

    def cancel() -> None:
        for one in pending:
            one.cancelled = True

    async with on_disconnect(request, cancel):
        try:
            async with asyncio.timeout(timeout):
                return list(await asyncio.gather(*map(read_all, pending)))
        finally:
            cancel()


@asynccontextmanager
async def on_disconnect(request: Request, cancel: Callable[[], None]) -> AsyncGenerator[None]:
    """Call `cancel` if the client disconnects while the code in the `async with` block runs."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


def stream_response(
    header: dict[str, Any],
    streams: Sequence[AsyncIterator[dict[str, Any] | Usage]],
    pending: Sequence[PendingRequest],
    body: BaseCompletionRequest,
    timeout: float,
) -> StreamingResponse:
    """Send all samples as one stream of events. Each event has the index of its sample.

    If the client asked for token counts, the last event has the token counts.
    """

    async def events() -> AsyncIterator[str]:
        queue: asyncio.Queue[tuple[int, dict[str, Any] | Usage | Exception]] = asyncio.Queue()

        async def forward(index: int, stream: AsyncIterator[dict[str, Any] | Usage]) -> None:
            try:
                async for item in stream:
                    queue.put_nowait((index, item))
            except SchoolError as error:
                queue.put_nowait((index, error))

        tasks = [asyncio.create_task(forward(index, stream)) for index, stream in enumerate(streams)]
        completion_tokens, unfinished = 0, len(tasks)
        try:
            async with asyncio.timeout(timeout):
                while unfinished:
                    index, item = await queue.get()
                    if isinstance(item, Exception):
                        yield sse_event(error_body(str(item), "server_error"))
                        return
                    if isinstance(item, Usage):
                        completion_tokens, unfinished = completion_tokens + item.completion_tokens, unfinished - 1
                    else:
                        yield sse_event({**header, "choices": [{"index": index, **item}]})
            if body.stream_options and body.stream_options.include_usage:
                usage = Usage(prompt_tokens(pending, body), completion_tokens)
                yield sse_event({**header, "choices": [], "usage": usage.to_json()})
            yield sse_event("[DONE]")
        except TimeoutError:
            yield sse_event(error_body(timeout_text(timeout), "server_error"))
        finally:
            for task in tasks:
                task.cancel()
            for one in pending:
                one.cancelled = True

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def prompt_tokens(pending: Sequence[PendingRequest], body: BaseCompletionRequest) -> int:
    """Count the tokens of all prompts. A prompt with several samples counts only once."""
    return sum(len(one.rollout) for one in pending[:: body.n])


def timeout_text(timeout: float) -> str:
    return f"timeout after {timeout:g} seconds; ask for fewer tokens, or start the server with a larger --timeout"
