"""Listens for HTTP until a signal asks it to stop, then ends what would never end by itself. Knows no endpoints."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

GRACE_SECONDS = 30  # what answers in progress may still take


class Listener(uvicorn.Server):
    """uvicorn's server; `before_stop` is called when it stops accepting, before it waits for open connections."""

    def __init__(self, app: ASGIApp, host: str, port: int, before_stop: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        )
        self._before_stop = before_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_stop()
        await super().shutdown(sockets)
