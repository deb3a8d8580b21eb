"""Who may ask: what a page of another origin, a stranger's name for this machine, or a missing key gets instead."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
MOST_BYTES = 4 << 20  # of a request's body
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""Pages ask nobody but their own server, and run no script that did not come with it."""
PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}
"""What a browser asks before a page of an origin that was let in may ask."""


def told(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    message = message.encode(errors="replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Guard:
    """Refuses what must not get in, and counts how everything ended.

    host     what the server is bound to; bound to this machine, it answers to no other name (DNS rebinding)
    origins  of pages that may ask, besides its own
    key      what has to be sent as API key for everything but the page itself, health and metrics
    """

    def __init__(
        self, app: ASGIApp, host: str, origins: Sequence[str] = (), key: str = "", statuses: Counter[int] | None = None
    ) -> None:
        self.app, self.host, self.origins, self.key = app, host, origins, key
        self.statuses = Counter[int]() if statuses is None else statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request = Request(scope)
        origin = request.headers.get("origin", "")
        let_in = [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
                message["headers"] = [
                    *message.get("headers", ()),
                    *(let_in if origin in self.origins else ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await (self.refused(request) or self.app)(scope, receive, count)

    def refused(self, request: Request) -> Response | None:
        """The answer to what must not get in; None: let it in."""
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.host in LOOPBACK and name not in LOOPBACK:
            return JSONResponse(told(f"this server is not `{name}`", "invalid_request_error"), 421)
        origin = request.headers.get("origin")
        if origin and origin not in (f"http://{host}", f"https://{host}", *self.origins):
            text = f"pages of {origin} may not ask here"
            return JSONResponse(told(text, "invalid_request_error", code="origin"), 403)
        if origin in self.origins and "access-control-request-method" in request.headers:
            return Response(status_code=204, headers=PREFLIGHT)
        if self.key and request.url.path.startswith(("/v1", "/api")):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                text = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
                return JSONResponse(told(text, "authentication_error", code="invalid_api_key"), 401)
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdecimal():
            return JSONResponse(told("send the length of the body (Content-Length)", "invalid_request_error"), 411)
        if length.isdecimal() and int(length) > MOST_BYTES:
            return JSONResponse(told(f"a request may have {MOST_BYTES:,} bytes", "invalid_request_error"), 413)
        return None
