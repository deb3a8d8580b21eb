"""This file checks the origin, host, API key and body size of each request before the app gets the request."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
MAX_BODY_BYTES = 4 << 20
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The content security policy: a page can send requests only to its server, and can run only scripts of its server."""
PREFLIGHT_HEADERS = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}
"""The response to a CORS preflight request of an allowed origin."""


def error_body(message: str, error_type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Make the body of an error response, in the format of OpenAI's API."""
    message = message.encode(errors="replace").decode()
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


class AccessControl:
    """ASGI middleware that rejects each request that fails a check, and counts the responses by HTTP status.

    `host`: the address on which the server listens. If the server listens on a loopback address, the Host header of a
        request must be a loopback name too, as a protection against DNS rebinding.
    `allowed_origins`: the origins whose web pages can send requests, in addition to the server's own origin.
    `api_key`: the key that is required for every path below /v1 and /api. If `api_key` is empty, no key is required.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        allowed_origins: Sequence[str] = (),
        api_key: str = "",
        status_counts: Counter[int] | None = None,
    ) -> None:
        self.app, self.host, self.allowed_origins, self.api_key = app, host, allowed_origins, api_key
        self.status_counts = Counter[int]() if status_counts is None else status_counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request = Request(scope)
        origin = request.headers.get("origin", "")
        cors_headers = [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status_counts[message["status"]] += 1
                message["headers"] = [
                    *message.get("headers", ()),
                    *(cors_headers if origin in self.allowed_origins else ()),
                    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await (self.early_response(request) or self.app)(scope, receive, send_with_headers)

    def early_response(self, request: Request) -> Response | None:
        """Return the response to a request that must not reach the app: an error, or the reply to a CORS preflight.

        Returns None if the app should handle the request.
        """
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.host in LOOPBACK_HOSTS and name not in LOOPBACK_HOSTS:
            text = f"the server does not accept the host name `{name}`; use 127.0.0.1 or localhost"
            return JSONResponse(error_body(text, "invalid_request_error"), 421)
        origin = request.headers.get("origin")
        if origin and origin not in (f"http://{host}", f"https://{host}", *self.allowed_origins):
            text = f"web pages of {origin} cannot send requests; `school serve --allowed_origins` allows such requests"
            return JSONResponse(error_body(text, "invalid_request_error", code="origin_not_allowed"), 403)
        if origin in self.allowed_origins and "access-control-request-method" in request.headers:
            return Response(status_code=204, headers=PREFLIGHT_HEADERS)
        if self.api_key and request.url.path.startswith(("/v1", "/api")):
            sent_key = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent_key.encode(), self.api_key.encode()):
                text = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
                return JSONResponse(error_body(text, "authentication_error", code="invalid_api_key"), 401)
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdecimal():
            text = "Content-Length is missing; send the length of the body"
            return JSONResponse(error_body(text, "invalid_request_error"), 411)
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            text = f"the body has {int(length):,} bytes, but the limit is {MAX_BODY_BYTES:,} bytes; send a smaller body"
            return JSONResponse(error_body(text, "invalid_request_error"), 413)
        return None
