"""Web pages of other origins, and what their browsers are told (CORS): on clients' paths alone, never the operator's.

Where there are keys, a page must show one, which no browser adds by itself: any origin may ask. Where there are none,
the pages of this machine may: else any page that somebody here opens could use the experts and read what they say.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from coe_server.http.door.guard import Guard, is_for_clients, is_of_this_machine

_ASKS_FOR = "access-control-request-method"
_REMEMBERED_SECONDS = 600  # a browser need not ask again for so long


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
