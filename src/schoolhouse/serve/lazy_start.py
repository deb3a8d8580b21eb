"""This file serves the chat page while the server is still loading. Loading torch and a model takes several seconds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from socket import socket

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from schoolhouse.serve.auth import AccessControl
from schoolhouse.serve.chat_page import add_page
from schoolhouse.serve.settings import ServerConfig


class LazyStart:
    """An app that serves the chat page immediately. All other requests wait until `build` has made the full app."""

    def __init__(self, config: ServerConfig, build: Callable[[], ASGIApp]) -> None:
        page_app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        add_page(page_app)
        self.page_app: ASGIApp = AccessControl(
            page_app, config.host, config.allowed_origins, allowed_hosts=config.allowed_hosts
        )
        self.built: Future[ASGIApp] = Future()
        self._build = build

    def build_or_exit(self, server: uvicorn.Server) -> None:
        """Build the full app. If `build` fails, the server ends."""
        try:
            self.built.set_result(self._build())
        except BaseException as error:
            self.built.set_exception(error)
            server.should_exit = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        is_page = scope["type"] == "http" and (path == "/" or path.startswith("/web/"))
        # shielded: if a waiting client disconnects, the future must not be cancelled, because other clients wait for it
        app = self.page_app if is_page else await asyncio.shield(asyncio.wrap_future(self.built))
        await app(scope, receive, send)


def run(config: ServerConfig, build: Callable[[], ASGIApp], close: Callable[[], None], listener: socket) -> None:
    """Serve the requests that arrive at `listener`. After a signal, finish the running requests and stop.

    If `build` raises an exception, `run` raises the same exception.
    """
    app = LazyStart(config, build)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    builder = threading.Thread(target=app.build_or_exit, args=(server,), name="loading", daemon=True)
    builder.start()
    try:
        server.run(sockets=[listener])
    finally:
        if app.built.done() and app.built.exception() is None:
            close()
    if app.built.done():
        app.built.result()
