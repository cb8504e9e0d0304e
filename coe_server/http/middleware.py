"""Checks before every endpoint: pages of other origins, the key, its limits. Counts every response.

Pure ASGI, on the hot path. Web pages of other origins: the operator's paths are for this server's own page alone. The
clients' paths take a key in `Authorization: Bearer` or `x-api-key`, which no browser adds by itself. If keys are
configured, pages of any origin may send requests with one. If none are, pages of this machine may, with any key: the
browser asks beforehand (CORS) whether it may send that header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coe_server.errors import (
    BodyTooSlow,
    CoeError,
    ExpertUnavailable,
    Forbidden,
    InvalidApiKey,
    ModelWithheld,
    RateLimited,
    UnknownPath,
)
from coe_server.http.auth import (
    CALLER,
    PUBLIC,
    Guard,
    is_for_clients,
    is_of_this_machine,
    presented_on_purpose,
)
from coe_server.http.browsers import RequestHeaders, is_visit, other_page
from coe_server.http.errors import error_response, unexpected
from coe_server.http.headers import HARMLESS, REQUEST_ID, completed, new_request_id
from coe_server.http.paths import Paths
from coe_server.http.rate_limits import HOLD, Admission, Bodies, RateLimits, Rejections
from coe_server.keys import Key
from coe_server.metrics import ERRORS, KEY_REQUESTS, REQUESTS, Telemetry

Endpoint = Callable[[Request], Awaitable[Response]]
# Lets a browser ask the operator for the admin key; a client library needs no such thing.
_CHALLENGE = {"www-authenticate": 'Basic realm="coe: any name, and the admin key as the password"'}


class Middleware:
    """Wraps the whole application. `guard` gives the current one: keys may be read again; `paths` are the app's.

    `direct`, by path, answers a POST without the framework's layers in between; `app` knows the same endpoints, for
    its document and for other methods. `rejections` counts what is rejected before it gets here, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        guard: Callable[[], Guard],
        limits: RateLimits,
        bodies: Bodies,
        paths: Paths,
        rejections: Rejections,
        direct: Mapping[str, Endpoint],
    ) -> None:
        self.rejections = rejections
        self._app = app
        self._paths = paths
        self._direct = direct
        self._telemetry = telemetry
        self._guard = guard
        self._limits = limits
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/"):  # from here on each path has one spelling, for keys and limits, too
            scope["path"] = scope["path"].rstrip("/") or "/"
        guard, headers = self._guard(), RequestHeaders(scope["headers"])
        origin = headers.get("origin", None)
        if origin is not None and is_welcome(origin, scope["path"], guard):
            if (leave := preflight(scope["method"], headers, origin)) is not None:
                self.count(scope, None, leave.status_code)
                await leave(scope, receive, send)
                return
            send = readable_by(origin, send)
        await self._admit(guard, headers, scope, receive, send)

    async def _admit(self, guard: Guard, headers: RequestHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        exists = path in self._direct or self._paths.has(path)
        try:
            key = _authenticated(guard, scope, headers, exists)
            admission = self._limits.enter(key) if key is not None else None
        except CoeError as error:
            owner = guard.owner(headers)
            self.rejections.count(error, path, owner)
            told = self._limits.left(owner) if owner is not None and isinstance(error, RateLimited) else {}
            if isinstance(error, InvalidApiKey) and exists and not is_for_clients(path):
                told = _CHALLENGE
            await error_response(error, {REQUEST_ID: new_request_id(), **told}, path)(scope, receive, send)
            return
        scope[CALLER] = key
        scope[HOLD] = hold = self._bodies.hold(key)
        endpoint = (self._direct.get(path) if scope["method"] == "POST" else None) if exists else self._no_such_path
        counted = _CountedSend(send, self, scope, key, admission)
        try:
            if endpoint is None:
                await self._app(scope, receive, counted)
            else:
                await self._answer(endpoint, scope, receive, counted)
        except asyncio.CancelledError:  # the server stops, and the grace period is over, for example during a body
            await self._fail(ExpertUnavailable("the server is stopping"), scope, receive, counted)
        except Exception as error:  # noqa: BLE001  nothing is outside of this: a mistake of ours must become an answer
            await self._fail(unexpected(error), scope, receive, counted)
        finally:
            hold.release()
            if admission is not None:
                admission.end()

    async def _answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await endpoint(Request(scope, receive, send))
        except CoeError as error:
            self._telemetry.count(ERRORS, error.code)
            if isinstance(error, ModelWithheld | Forbidden | BodyTooSlow):
                self.rejections.log(error, scope["path"], scope[CALLER])
            response = error_response(error, path=scope["path"])
        await response(scope, receive, send)

    async def _no_such_path(self, request: Request) -> Response:
        path = request.scope["path"]
        raise UnknownPath(f"{request.method} {path}: unknown path; {self._paths.advice(path)}")

    async def _fail(self, error: CoeError, scope: Scope, receive: Receive, counted: _CountedSend) -> None:
        """Send the error.

        An answer that has begun stays incomplete, so that the client does not mistake it for complete.
        """
        self._telemetry.count(ERRORS, error.code)
        if not counted.begun:
            await error_response(error, path=scope["path"])(scope, receive, counted)

    def count(self, scope: Scope, key: Key | None, status: int) -> None:
        """One answer, labelled with the path as declared; unknown ones are `other`: clients make up no labels."""
        path = scope["path"]
        if path not in self._direct:
            path = getattr(scope.get("route"), "path_format", None) or "other"
        self._telemetry.count(REQUESTS, path, str(status))
        if key is not None:
            self._telemetry.count(KEY_REQUESTS, key.name, str(status))


def _authenticated(guard: Guard, scope: Scope, headers: RequestHeaders, exists: bool) -> Key | None:
    """The key that gave access, None where none was needed. Raises InvalidApiKey or Forbidden."""
    refuse_other_pages(scope, headers, guard)
    key = guard.admit(scope["path"], headers) if exists else guard.client(headers)
    if key is None:
        refuse_other_hosts(scope, headers, guard)
    return key


class _CountedSend:
    """`send`, which counts the answer by its status, completes its headers, and ends the admission with its last piece.

    Not later: a client that has its whole answer may send its next request at once.
    """

    def __init__(
        self, send: Send, middleware: Middleware, scope: Scope, key: Key | None, admission: Admission | None
    ) -> None:
        self.begun = False
        self._send = send
        self._middleware = middleware
        self._scope = scope
        self._key = key
        self._admission = admission

    def __call__(self, message: Message) -> Awaitable[None]:
        """What is to be awaited is the server's own `send`: a stream passes here with every piece."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._middleware.count(self._scope, self._key, message["status"])
            headers = completed(message["headers"])
            if self._admission is not None:
                headers += [(name.encode(), value.encode()) for name, value in self._admission.headers.items()]
            message = {**message, "headers": headers}
        elif self._admission is not None and not message.get("more_body", False):
            self._admission.end()
        return self._send(message)


_ASKS_FOR = "access-control-request-method"
_REMEMBERED_SECONDS = 600  # how long a browser may keep the answer to a preflight request
_PAGE = "/"
_LONGEST_QUOTED = 80
_SEND_ONE = "send `Authorization: Bearer KEY` or `x-api-key: KEY`"
_BEHIND_A_PROXY = "a proxy in front of the server has to pass Host or X-Forwarded-Host on"


def refuse_other_pages(scope: Scope, headers: RequestHeaders, guard: Guard) -> None:
    """Raises Forbidden, or InvalidApiKey if a key would help, for requests of other sites' pages without a key.

    Public paths, and a link that leads to the page, are exempt: neither reveals or changes anything.
    """
    path = scope["path"]
    page = None if path in PUBLIC else other_page(headers)
    if page is None or (path == _PAGE and scope["method"] == "GET" and is_visit(headers)):
        return
    sent = f"a page of {page[:_LONGEST_QUOTED]!r} sent this request"
    if path == _PAGE or not is_for_clients(path):
        raise Forbidden(f"{sent}, and this path is for the server's own page; {_BEHIND_A_PROXY}")
    if any(presented_on_purpose(headers)):
        return
    if guard.keyring.keys:
        raise InvalidApiKey(f"{sent} without an API key: {_SEND_ONE}")
    raise Forbidden(f"{sent}; {_SEND_ONE} (any key, from a page of this machine); {_BEHIND_A_PROXY}")


def refuse_other_hosts(scope: Scope, headers: RequestHeaders, guard: Guard) -> None:
    """Raises Forbidden if a request without a key has a host name that is not one of this server's."""
    path = scope["path"]
    if path in PUBLIC or (guard.hosts.any_for_clients and is_for_clients(path)):
        return
    bound = scope.get("server")
    host = guard.hosts.unknown(headers.lines("host"), bound and bound[0])
    if host is not None:
        raise Forbidden(
            f"Host {host!r} is not a name of this server; use a name or an address of this machine, "
            "or list that name in http.allowed_hosts"
        )


def is_welcome(origin: str, path: str, guard: Guard) -> bool:
    """True if a page of this origin may read the answer."""
    return is_for_clients(path) and (bool(guard.keyring.keys) or is_of_this_machine(origin))


def preflight(method: str, headers: RequestHeaders, origin: str) -> Response | None:
    """The response to a CORS preflight request; None for any other request."""
    if method != "OPTIONS" or _ASKS_FOR not in headers:
        return None
    told = {
        **HARMLESS,
        **_told(origin),
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": headers.get("access-control-request-headers", "*"),
        "access-control-max-age": str(_REMEMBERED_SECONDS),
    }
    return Response(status_code=204, headers=told)


def readable_by(origin: str, send: Send) -> Send:
    """`send`, which lets pages of that origin read the answer and its headers."""
    told = [(name.encode(), value.encode("latin-1")) for name, value in _told(origin).items()]

    async def send_readable(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *told]}
        await send(message)

    return send_readable


def _told(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "*", "vary": "origin"}
