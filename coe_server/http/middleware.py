"""What every request passes before any endpoint: its key, its limits, and being counted. Pure ASGI, on the hot path.

Which paths there are, and which of them was meant by one that there is not. Knows nothing of who may ask.

Web pages of other origins: which of their requests are refused, and what their browsers are told (CORS).

What is the operator's is for this server's own page alone. What is any client's takes a key in `Authorization: Bearer`
or `x-api-key`, which no browser adds by itself. Where there are keys, pages of any origin may ask with one; where there
are none, a page of this machine may with any: a browser asks beforehand (CORS) whether it may send that header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
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
    CLIENTS_PREFIX,
    FOR_EVERYBODY,
    Guard,
    is_for_clients,
    is_of_this_machine,
    presented_on_purpose,
)
from coe_server.http.browsers import is_visit, other_page
from coe_server.http.errors import error_response, unexpected
from coe_server.http.headers import HARMLESS, REQUEST_ID, harmless, identified, new_request_id
from coe_server.http.rate_limits import HOLD, Admission, Bodies, RateLimits, Refusals
from coe_server.keys import Key
from coe_server.metrics import ERRORS, KEY_REQUESTS, REQUESTS, Telemetry

Endpoint = Callable[[Request], Awaitable[Response]]
# Lets a browser ask the operator for the admin key; a client library needs no such thing.
_CHALLENGE = {"www-authenticate": 'Basic realm="coe: any name, and the admin key as the password"'}


class Entrance:
    """Wraps the whole application. `guard` gives the one in charge now: keys may be read again; `paths` are the app's.

    `straight`, by path, answers a POST without the framework's layers in between; `app` knows the same endpoints, for
    its document and for other methods.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        guard: Callable[[], Guard],
        limits: RateLimits,
        bodies: Bodies,
        paths: Paths,
        refusals: Refusals,
        straight: Mapping[str, Endpoint],
    ) -> None:
        self._app = app
        self._paths = paths
        self._refusals = refusals
        self._straight = straight
        self._telemetry = telemetry
        self._guard = guard
        self._limits = limits
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/"):  # from here on there is one spelling of each path, for keys and limits, too
            scope["path"] = scope["path"].rstrip("/") or "/"
        guard = self._guard()
        origin = welcome_origin(scope, guard)
        if origin is not None:
            if (leave := preflight(scope, origin)) is not None:
                self._count(scope, None, leave.status_code)
                await leave(scope, receive, send)
                return
            send = readable_by(origin, send)
        await self._let_in(guard, scope, receive, send)

    async def _let_in(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        exists = path in self._straight or self._paths.has(path)
        try:
            key = _admitted(guard, scope, headers, exists)
            admission = self._limits.enter(key) if key is not None else None
        except CoeError as error:
            owner = guard.owner(headers)
            self._refusals.count(error, path, owner)
            told = self._limits.left(owner) if owner is not None and isinstance(error, RateLimited) else {}
            if isinstance(error, InvalidApiKey) and exists and not is_for_clients(path):
                told = _CHALLENGE
            await error_response(error, {REQUEST_ID: new_request_id(), **told}, path)(scope, receive, send)
            return
        scope[CALLER] = key
        scope[HOLD] = hold = self._bodies.hold(key)
        endpoint = self._straight.get(path) if scope["method"] == "POST" else None
        if not exists:
            endpoint = self._nowhere
        counting = _Counting(send, lambda status: self._count(scope, key, status), admission)
        try:
            if endpoint is None:
                await self._app(scope, receive, counting)
            else:
                await self._answer(endpoint, scope, receive, counting)
        except asyncio.CancelledError:  # the server stops and has waited long enough, for a body that comes, say
            await self._last_words(ExpertUnavailable("the server is stopping"), scope, receive, counting)
        except Exception as error:  # noqa: BLE001  nothing is outside of this: a mistake of ours must become an answer
            await self._last_words(unexpected(error), scope, receive, counting)
        finally:
            hold.release()
            if admission is not None:
                admission.end()

    def refused(self, error: CoeError) -> None:
        """What never came as far as here is counted and told, too."""
        self._refusals.count(error)

    async def _answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await endpoint(Request(scope, receive, send))
        except CoeError as error:
            self._telemetry.count(ERRORS, error.code)
            if isinstance(error, ModelWithheld | Forbidden | BodyTooSlow):
                self._refusals.tell(error, scope["path"], scope[CALLER])
            response = error_response(error, path=scope["path"])
        await response(scope, receive, send)

    async def _nowhere(self, request: Request) -> Response:
        meant = self._paths.meant(request.scope["path"])
        advice = f"did you mean {meant}?" if meant else "GET /openapi.json lists those that there are"
        raise UnknownPath(f"{request.method} {request.scope['path']}: there is no such path; {advice}")

    async def _last_words(self, told: CoeError, scope: Scope, receive: Receive, counting: _Counting) -> None:
        """An answer that has begun stays incomplete, so that nobody takes it for whole."""
        self._telemetry.count(ERRORS, told.code)
        if not counting.begun:
            await error_response(told, path=scope["path"])(scope, receive, counting)

    def _count(self, scope: Scope, key: Key | None, status: int) -> None:
        self._telemetry.count(REQUESTS, self._endpoint(scope), str(status))
        if key is not None:
            self._telemetry.count(KEY_REQUESTS, key.name, str(status))

    def _endpoint(self, scope: Scope) -> str:
        """The path as it is declared; what no endpoint answers is `other`, so that nobody makes up labels."""
        if scope["path"] in self._straight:
            return str(scope["path"])
        return getattr(scope.get("route"), "path_format", None) or "other"


def _admitted(guard: Guard, scope: Scope, headers: Headers, exists: bool) -> Key | None:
    """The key that opened the door, None where none was needed. Raises InvalidApiKey or Forbidden."""
    refuse_other_pages(scope, headers, guard)
    key = guard.admit(scope["path"], headers) if exists else guard.client(headers)
    if key is None:
        refuse_other_hosts(scope, headers, guard)
    return key


class _Counting:
    """`send`, which tells of an answer's status, gives it an id, and ends the admission with its last piece.

    Not later: a client that has its whole answer may ask again at once.
    """

    def __init__(self, send: Send, count: Callable[[int], None], admission: Admission | None) -> None:
        self.begun = False
        self._send = send
        self._count = count
        self._admission = admission

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._count(message["status"])
            headers = harmless(identified(message["headers"]))
            if self._admission is not None:
                told = [(name.encode(), value.encode()) for name, value in self._admission.headers.items()]
                headers = [*headers, *told]
            message = {**message, "headers": headers}
        elif self._admission is not None and not message.get("more_body", False):
            self._admission.end()
        await self._send(message)


MOST_LEFT_OUT = 4  # parts of a path: /openai/deployments/NAME/chat/completions is what some clients make of an address

_ANYTHING = "\0"  # a part that no endpoint asks for by itself


class Paths:
    """The paths of an application's `routes`."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    def has(self, path: str) -> bool:
        """Does an endpoint answer it, by whatever method?"""
        asked = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(asked)[0] is not Match.NONE for route in self._routes)

    def declared(self, path: str) -> str | None:
        """The path with a star for each part that its endpoint takes as it comes; None where there is no endpoint."""
        if not self.has(path):
            return None
        parts = path.split("/")
        for at in range(1, len(parts)):
            if self.has("/".join([*parts[:at], _ANYTHING, *parts[at + 1 :]])):
                parts[at] = "*"
        return "/".join(parts)

    def meant(self, path: str) -> str | None:
        """The path under /v1 that a client with a wrong base address was after."""
        parts = path.strip("/").split("/", MOST_LEFT_OUT)
        guesses = (CLIENTS_PREFIX + "/".join(parts[start:]) for start in range(len(parts)))
        return next((guess for guess in guesses if self.has(guess)), None)


_ASKS_FOR = "access-control-request-method"
_REMEMBERED_SECONDS = 600  # a browser need not ask again for so long
_PAGE = "/"
_LONGEST_QUOTED = 80
_SEND_ONE = "send `Authorization: Bearer KEY` or `x-api-key: KEY`"
_BEHIND_A_PROXY = "a proxy in front of the server has to pass Host or X-Forwarded-Host on"


def refuse_other_pages(scope: Scope, headers: Headers, guard: Guard) -> None:
    """Raises Forbidden, or InvalidApiKey where a key would do, for what a page elsewhere sends without a key.

    Paths that are for everybody, and a link that leads to the page, are exempt: neither tells or changes anything.
    """
    path = scope["path"]
    page = None if path in FOR_EVERYBODY else other_page(headers)
    if page is None or (path == _PAGE and scope["method"] == "GET" and is_visit(headers)):
        return
    sent = f"a page of {page[:_LONGEST_QUOTED]!r} sent this request"
    if path == _PAGE or not is_for_clients(path):
        raise Forbidden(f"{sent}, and this is for the server's own page; {_BEHIND_A_PROXY}")
    if any(presented_on_purpose(headers)):
        return
    if guard.keyring.keys:
        raise InvalidApiKey(f"{sent}, and no API key was given: {_SEND_ONE}")
    raise Forbidden(f"{sent}; {_SEND_ONE}, from a page of this machine any will do; {_BEHIND_A_PROXY}")


def refuse_other_hosts(scope: Scope, headers: Headers, guard: Guard) -> None:
    """Raises Forbidden if a request without a key asks for a name that is none of this server's."""
    path = scope["path"]
    if path in FOR_EVERYBODY or (guard.hosts.any_for_clients and is_for_clients(path)):
        return
    bound = scope.get("server")
    host = guard.hosts.unknown(headers.getlist("host"), bound and bound[0])
    if host is not None:
        raise Forbidden(
            f"Host {host!r} is no name of this server's; ask for a name or an address of this machine, "
            "or list that name in http.allowed_hosts"
        )


def welcome_origin(scope: Scope, guard: Guard) -> str | None:
    """The origin of the page that asks, if its browser may be told the answer; None for who is no browser."""
    origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
    if origin is None or not is_for_clients(scope["path"]):
        return None
    return origin if guard.keyring.keys or is_of_this_machine(origin) else None


def preflight(scope: Scope, origin: str) -> Response | None:
    """The answer to a browser that asks whether its page may ask; None where it does not. It shows no key yet."""
    headers = Headers(scope=scope)
    if scope["method"] != "OPTIONS" or _ASKS_FOR not in headers:
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
    """`send`, with leave for that origin's pages to read the answer and its headers."""
    told = [(name.encode(), value.encode("latin-1")) for name, value in _told(origin).items()]

    async def send_readable(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *told]}
        await send(message)

    return send_readable


def _told(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "*", "vary": "origin"}
