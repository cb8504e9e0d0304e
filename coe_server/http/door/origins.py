"""Web pages of other origins: which of their requests are refused, and what their browsers are told (CORS).

What is the operator's is for this server's own page alone. What is any client's takes a key in `Authorization: Bearer`
or `x-api-key`, which no browser adds by itself. Where there are keys, pages of any origin may ask with one; where there
are none, a page of this machine may with any: a browser asks beforehand (CORS) whether it may send that header.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from coe_server.errors import Forbidden, InvalidApiKey
from coe_server.http.door.browser import is_visit, other_page
from coe_server.http.door.guard import FOR_EVERYBODY, Guard, is_for_clients, is_of_this_machine, presented_on_purpose
from coe_server.http.harmless import HARMLESS

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
