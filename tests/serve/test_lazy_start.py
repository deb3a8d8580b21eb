"""The page is served before the model is loaded; other requests wait, and a disconnect ends none of the others."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from schoolhouse.serve.lazy_start import LazyStart
from schoolhouse.serve.settings import ServerConfig
from schoolhouse.types import SchoolError


def get_scope(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"127.0.0.1")], "query_string": b""}


async def get(app: LazyStart, path: str) -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()  # a client that stays connected and sends nothing more

    await app(get_scope(path), receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_the_page_does_not_wait_and_a_disconnect_ends_no_other_request():
    app = LazyStart(ServerConfig(model=Path("m")), lambda: PlainTextResponse("here"))

    async def do() -> None:
        assert b"/web/chat.js" in (await get(app, "/"))[1]
        leaves, stays = (asyncio.create_task(get(app, "/v1/models")) for _ in range(2))
        await asyncio.sleep(0.05)
        leaves.cancel()
        await asyncio.wait([leaves])
        app.built.set_result(PlainTextResponse("here"))
        assert await asyncio.wait_for(stays, 5) == (200, b"here")

    asyncio.run(do())


def test_an_error_while_loading_ends_the_server():
    def build() -> Any:
        raise SchoolError("no such folder")

    app = LazyStart(ServerConfig(model=Path("m")), build)
    server = uvicorn.Server(uvicorn.Config(PlainTextResponse("here")))
    app.build_or_exit(server)
    assert server.should_exit
    with pytest.raises(SchoolError, match="no such folder"):
        app.built.result()
