"""The page before its model: it is there at once, the rest waits, and who leaves ends nobody else's waiting."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from schoolhouse.serve.lazy_start import Early
from schoolhouse.serve.settings import Serve
from schoolhouse.types import SchoolError


def asked(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"127.0.0.1")], "query_string": b""}


async def answer(early: Early, path: str) -> tuple[int, bytes]:
    told: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        told.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()  # a client that stays and says nothing more

    await early(asked(path), receive, send)
    return told[0]["status"], b"".join(message.get("body", b"") for message in told[1:])


def test_the_page_does_not_wait_and_a_client_that_leaves_ends_nothing():
    early = Early(Serve(model=Path("m")), lambda: PlainTextResponse("here"))

    async def do() -> None:
        assert b"/web/chat.js" in (await answer(early, "/"))[1]
        leaves, stays = (asyncio.create_task(answer(early, "/v1/models")) for _ in range(2))
        await asyncio.sleep(0.05)
        leaves.cancel()
        await asyncio.wait([leaves])
        early.built.set_result(PlainTextResponse("here"))
        assert await asyncio.wait_for(stays, 5) == (200, b"here")

    asyncio.run(do())


def test_what_keeps_a_model_from_loading_ends_the_server():
    def build() -> Any:
        raise SchoolError("no such folder")

    early, server = Early(Serve(model=Path("m")), build), uvicorn.Server(uvicorn.Config(PlainTextResponse("here")))
    early.work(server)
    assert server.should_exit
    with pytest.raises(SchoolError, match="no such folder"):
        early.built.result()
