"""This file checks the origin, host, API key and body size of each request before the app gets the request."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
ANY_HOST = "*"
KEY_VARIABLE = "SCHOOLHOUSE_API_KEY"
"""The environment variable with the API key. Other users can see command lines, but not environment variables."""
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

    `host`: the address on which the server listens. The address determines which names the Host header of a request
        can have (see `accepts_host`).
    `allowed_origins`: the origins whose web pages can send requests, in addition to the server's own origin.
    `allowed_hosts`: additional names that the Host header of a request can have. The name `*` allows all names.
    `api_key`: the key that is required for every path below /v1 and /api. If `api_key` is empty, no key is required.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        allowed_origins: Sequence[str] = (),
        api_key: str = "",
        status_counts: Counter[int] | None = None,
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self.app, self.host, self.allowed_origins, self.api_key = app, host, allowed_origins, api_key
        self.allowed_hosts = allowed_hosts
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
        if not accepts_host(host, self.host, self.allowed_hosts):
            text = (
                f"the server does not accept the host name `{host[:300]}`; use 127.0.0.1, localhost or the IP address "
                "of the server, or start the server with `--allowed_hosts NAME`"
            )
            return JSONResponse(error_body(text, "invalid_request_error", code="host_not_allowed"), 421)
        origin = request.headers.get("origin")
        protected = request.url.path.startswith(("/v1", "/api"))
        # browsers send Sec-Fetch-Site with requests that have no Origin, such as those of an <img>
        foreign = protected and request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        # behind a proxy, the Host header can be another name of the server than the one in the browser
        own_origins = {f"{scheme}://{name}" for name in (host, *self.allowed_hosts) for scheme in ("http", "https")}
        own_origins |= set(self.allowed_origins)
        if (origin and origin not in own_origins) or (foreign and not origin):
            text = (
                f"web pages of {origin or 'other sites'} cannot send requests to this server; to allow the pages of "
                "one origin, start the server with `--allowed_origins ORIGIN`"
            )
            return JSONResponse(error_body(text, "invalid_request_error", code="origin_not_allowed"), 403)
        if origin in self.allowed_origins and "access-control-request-method" in request.headers:
            return Response(status_code=204, headers=PREFLIGHT_HEADERS)
        if self.api_key and protected:
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


def accepts_host(header: str, listens_on: str, allowed_hosts: Sequence[str] = ()) -> bool:
    """Return whether a server accepts a request with this Host header.

    A web site can change the IP address of its own name to the IP address of a server (DNS rebinding). The browser then
    sends requests of the site's pages to the server. In a DNS rebinding attack, the Host header of a request contains
    the name of the attacking site. So a server accepts only loopback names, the address on which the server listens,
    and the names in `allowed_hosts`. If `listens_on` is no loopback address, the server also accepts every IP address,
    because a Host header with an IP address cannot come from DNS rebinding.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    name = name.lower().removesuffix(".")
    names = {allowed.lower() for allowed in (*LOOPBACK_HOSTS, listens_on, *allowed_hosts)}
    if ANY_HOST in allowed_hosts or name in names or header.lower() in names:
        return True
    return listens_on not in LOOPBACK_HOSTS and _is_ip_address(name)


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def key_or_variable(api_key: str) -> str:
    """Return the value of the option `api_key`, or the value of the environment variable if the option is empty."""
    return api_key or os.environ.get(KEY_VARIABLE, "").strip()


def exposure_warning(host: str, api_key: str) -> str:
    """Return a warning if other machines can reach a server without an API key. Otherwise return an empty text."""
    if host in LOOPBACK_HOSTS or api_key:
        return ""
    return (
        f"warning: other machines can reach this server at {host}, and the server has no API key; set the environment "
        f"variable {KEY_VARIABLE}, or use --host 127.0.0.1"
    )
