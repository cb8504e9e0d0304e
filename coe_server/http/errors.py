"""Errors in OpenAI's or Anthropic's shape: the only place that turns an error into a response."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from coe_server.config.mistakes import Mistake
from coe_server.errors import BodyTooLarge, BodyTooSlow, CoeError, RequestError, UnsupportedCoding, UpgradeRequired
from coe_server.http.headers import HARMLESS
from coe_server.metrics import ERRORS, Telemetry
from coe_server.upstream.content_coding import TAKEN

DROPPED_BYTES = 2**30  # of a body that is too large, after its answer
DROPPED_SECONDS = 10.0

logger = logging.getLogger(__name__)

_ANTHROPICS_TYPES = {  # https://docs.anthropic.com/en/api/errors
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
NO_WEBSOCKET = "WebSockets are not supported; send the request over HTTP/1.1, streams are server-sent events"
IN_PLACE_OF_WEBSOCKET = {"connection": "Upgrade", "upgrade": "HTTP/1.1"}  # RFC 9110, 15.5.22 asks for both
_WEBSOCKET_KEY = "sec-websocket-key"  # what a proxy without WebSocket support leaves of a handshake
_OUR_MISTAKE = "internal server error; see the server's log"


def error_body(error: CoeError, path: str = "") -> dict[str, Any]:
    """`{"error": {message, type, param, code}}` as OpenAI's clients read it; Anthropic's shape on Anthropic's paths."""
    param = error.param if isinstance(error, RequestError) else None
    told = {"message": error.sentence, "type": error.type, "param": param, "code": error.code}
    if not _is_anthropics(path):
        return {"error": told}
    return {"type": "error", "error": told | {"type": _anthropics_type(error.status)}}


def error_event(error: CoeError, path: str = "") -> bytes:
    """The same as the last event of a stream that failed."""
    return event_of(error_body(error, path), path)


def event_of(told: Mapping[str, Any], path: str) -> bytes:
    """An error's body, ours or an engine's own, as an event; Anthropic's clients ignore events without a name."""
    if not _is_anthropics(path):
        return f"data: {json.dumps(told)}\n\n".encode()
    return f"event: error\ndata: {json.dumps({'type': 'error', **told})}\n\n".encode()


def _is_anthropics(path: str) -> bool:
    return path.startswith("/v1/messages")


def _anthropics_type(status: int) -> str:
    return _ANTHROPICS_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_response(error: CoeError, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
    """The response for `error`, with `Retry-After` in whole seconds if a retry makes sense."""
    all_headers = {**HARMLESS, **(headers or {})}
    if error.retry_after_seconds is not None:
        all_headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if error.should_retry:
        all_headers["x-should-retry"] = "true"  # as OpenAI's and Anthropic's clients read it
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        all_headers["connection"] = "close"  # what is left of the body is no next request
    if isinstance(error, UnsupportedCoding):
        all_headers["accept-encoding"] = ", ".join(TAKEN)  # RFC 9110, 15.5.16
    body = json.dumps(error_body(error, path))  # ASCII only: a message may quote half a surrogate pair
    kind = _ReadsOn if isinstance(error, BodyTooLarge) else Response
    return kind(body, error.status, all_headers, media_type="application/json")


class _ReadsOn(Response):
    """A response to a body that was not read whole. What still comes is read and dropped for a while.

    Most clients read an answer once they have sent all; one that is closed before tells of a broken pipe instead.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(DROPPED_SECONDS):
                await _drop(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drop(receive: Receive) -> None:
    left_bytes, more = DROPPED_BYTES, True
    while more and left_bytes > 0:
        message = await receive()
        left_bytes -= len(message.get("body", b""))
        more = message.get("more_body", False)


def unexpected(error: Exception) -> CoeError:
    """The caller's error for an internal error; the log has the details."""
    logger.error("a request failed unexpectedly", exc_info=error)
    return CoeError(_OUR_MISTAKE)


def _methods(request: Request) -> str:
    """The methods that this path has, over all its routes: `DELETE, GET`."""
    routes = [one for one in request.app.routes if isinstance(one, Route)]
    found = {name for one in routes if one.matches(request.scope)[0] is not Match.NONE for name in one.methods or ()}
    return ", ".join(sorted(found - {"HEAD"}))


def install_error_handlers(app: FastAPI, telemetry: Telemetry) -> None:
    """Errors of the framework get the same shape."""

    def told(request: Request, error: CoeError, headers: Mapping[str, str] | None = None) -> Response:
        telemetry.count(ERRORS, error.code)
        return error_response(error, headers, request.scope["path"])

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, CoeError)
        return told(request, error)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        mistake = Mistake.first([{**first, "loc": first["loc"][1:]}])  # without "body" or "query"
        return told(request, RequestError(str(mistake), param=mistake.key or None))

    async def by_the_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405 and _WEBSOCKET_KEY in request.headers:
            return told(request, UpgradeRequired(NO_WEBSOCKET), IN_PLACE_OF_WEBSOCKET)
        headers, detail = error.headers, error.detail
        if error.status_code == 405 and (allowed := _methods(request)):
            headers, detail = {"Allow": allowed}, f"method not allowed; use {allowed}"
        shaped = RequestError(f"{request.method} {request.scope['path']}: {detail}")
        shaped.status = error.status_code
        shaped.code = "unknown_url" if error.status_code == 404 else "method_not_allowed"
        return told(request, shaped, headers)

    app.add_exception_handler(CoeError, ours)
    app.add_exception_handler(RequestValidationError, malformed)

    async def mistaken(request: Request, error: Exception) -> Response:
        """The framework raises it again afterwards, for `Middleware` to log and to count."""
        return error_response(CoeError(_OUR_MISTAKE), path=request.scope["path"])

    app.add_exception_handler(HTTPException, by_the_framework)
    app.add_exception_handler(Exception, mistaken)
