"""Coroutines of verifiers run in one event loop, which is kept."""

import asyncio

from schoolhouse.tasks.async_calls import run_async


def test_two_calls_share_an_event_loop() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = run_async(loop())
    assert first is run_async(loop())
    assert not first.is_closed()
