"""What every request passes before any endpoint: it is counted by endpoint and status. Pure ASGI, on the hot path."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coe_server.telemetry import REQUESTS, Telemetry


class Entrance:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._telemetry.count(REQUESTS, _endpoint(scope), str(message["status"]))
            await send(message)

        await self._app(scope, receive, counting)


def _endpoint(scope: Scope) -> str:
    """The path as it is declared; what no endpoint answers is `other`, so that nobody makes up labels."""
    route = scope.get("route")
    return getattr(route, "path", None) or "other"
