"""A page that is there before its model: torch takes seconds to import, a page need not wait for that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from socket import socket

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from schoolhouse.serve.auth import Guard
from schoolhouse.serve.chat_page import add_page
from schoolhouse.serve.settings import Serve


class Early:
    """Answers for the page at once, and for everything else when `build` has made the server."""

    def __init__(self, c: Serve, build: Callable[[], ASGIApp]) -> None:
        pages = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        add_page(pages)
        self.pages: ASGIApp = Guard(pages, c.host, c.origins)
        self.built: Future[ASGIApp] = Future()
        self._build = build

    def work(self, server: uvicorn.Server) -> None:
        """Build; where that fails there is nothing to serve."""
        try:
            self.built.set_result(self._build())
        except BaseException as error:
            self.built.set_exception(error)
            server.should_exit = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        early = scope["type"] == "http" and (path == "/" or path.startswith("/web/"))
        # shielded: a client that leaves while it waits must not end the waiting of the others
        app = self.pages if early else await asyncio.shield(asyncio.wrap_future(self.built))
        await app(scope, receive, send)


def run(c: Serve, build: Callable[[], ASGIApp], close: Callable[[], None], door: socket) -> None:
    """Serve who comes in at `door` until told to end, and finish what runs. Raises what `build` raised."""
    early = Early(c, build)
    server = uvicorn.Server(uvicorn.Config(early, log_level="warning", lifespan="off"))
    worker = threading.Thread(target=early.work, args=(server,), name="loading", daemon=True)
    worker.start()
    try:
        server.run(sockets=[door])
    finally:
        if early.built.done() and early.built.exception() is None:
            close()
    if early.built.done():
        early.built.result()
