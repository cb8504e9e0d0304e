"""Listens for HTTP until a signal asks it to stop, then ends what would never end by itself. Knows no endpoints."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from coe_server.config.addresses import host_and_port
from coe_server.errors import CoeError
from coe_server.http.door.connection import Connection
from coe_server.system.process import OpenFilesWatch

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0  # what answers in progress may still take
# An idle connection is kept for longer than proxies and load balancers keep theirs (nginx and AWS' 60 s), so that it is
# they who close it: a request on its way over a connection that we are closing would be lost.
IDLE_SECONDS = 75


class Door(Protocol):
    """An ASGI application that is also told what never reaches it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def refused(self, error: CoeError) -> None:
        """A request was refused before it was whole enough to be one."""


class Listener(uvicorn.Server):
    """uvicorn's server; `before_stop` is called when it stops accepting, before it waits for open connections."""

    def __init__(
        self, app: Door, host: str, port: int, before_stop: Callable[[], None], grace_seconds: float = GRACE_SECONDS
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=partial(Connection, refused=app.refused),  # type: ignore[arg-type]  # uvicorn only calls it
                ws="none",
                log_level="warning",
                log_config=None,  # its lines go where ours go, in the same shape
                access_log=False,
                proxy_headers=False,  # nothing here believes what a proxy says of its clients
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=math.ceil(grace_seconds),
            )
        )
        self._before_stop = before_stop
        self._open_files = OpenFilesWatch()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self._open_files.look()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                address = host_and_port(*listening.getsockname()[:2])
                logger.info("listening on http://%s/v1; GET /readyz tells when the experts are up", address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace_seconds = self.config.timeout_graceful_shutdown
        logger.info("stopping: nobody is admitted any more, answers in progress may take %d s", grace_seconds)
        self._before_stop()
        await super().shutdown(sockets)
        logger.info("stopped")
