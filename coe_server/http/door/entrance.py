"""What every request passes before any endpoint: its key, its limits, and being counted. Pure ASGI, on the hot path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers
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
from coe_server.http.door.bodies import HOLD, Bodies
from coe_server.http.door.guard import Guard, is_for_clients
from coe_server.http.door.origins import (
    preflight,
    readable_by,
    refuse_other_hosts,
    refuse_other_pages,
    welcome_origin,
)
from coe_server.http.door.paths import Paths
from coe_server.http.door.rate_limits import Admission, RateLimits
from coe_server.http.door.refusals import Refusals
from coe_server.http.harmless import harmless
from coe_server.http.openai_errors import error_response, unexpected
from coe_server.http.request_id import REQUEST_ID, identified, new_request_id
from coe_server.keys import Key
from coe_server.metrics import ERRORS, KEY_REQUESTS, REQUESTS, Telemetry

Endpoint = Callable[[Request], Awaitable[Response]]
CALLER = "coe.caller"  # in a request's scope: the `Key` that opened the door, or None
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
