"""One client's connection: uvicorn's, with an end to heads that are too long, too slow or none. Knows no endpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coe_server.errors import CoeError, HeadTooLong, HeadTooSlow, NoHttp
from coe_server.http.openai_errors import error_body, error_response
from coe_server.http.request_id import REQUEST_ID, new_request_id

MOST_HEAD_BYTES = 64 * 1024  # request line and headers, or what is read between two pieces of a body
HEAD_SECONDS = 20.0  # from the first byte, or from the connection's beginning
_TOO_LONG = f"the request's line and headers are longer than {MOST_HEAD_BYTES} bytes"


class Connection(HttpToolsProtocol):
    """Refuses heads that are too long or too slow; a body's limits are looked after where it is read.

    A long head is seen between two reads of the socket while it goes on, and measured when it is whole.
    """

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, refused: Callable[[CoeError], None], **options: Any) -> None:
        """`refused` is told of each refusal."""
        super().__init__(*args, **options)
        self._refused = refused
        self._unfinished_bytes = 0  # of a head or a trailer: read, and not known to be whole
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._unfinished_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLong(_TOO_LONG))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_over()
        admitted = self.app
        if self._head_bytes > MOST_HEAD_BYTES:
            self.app = self._refuse_whole_head  # in its place: after the answers to those that came before it
        super().on_headers_complete()
        self.app = admitted

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        super().on_body(body)

    @property
    def _head_bytes(self) -> int:
        """With one space after each colon; the version takes 9 bytes and each line ends with 2."""
        line = len(self.parser.get_method()) + 1 + len(self.url) + 9 + 2
        return line + sum(len(name) + 2 + len(value) + 2 for name, value in self.headers) + 2

    def _expect_head(self) -> None:
        self._head_is_over()
        self._patience = self.loop.call_later(self.head_seconds, self._lose_patience)

    def _head_is_over(self) -> None:
        self._unfinished_bytes = 0
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        if not self.transport.is_closing():
            self._refuse(HeadTooSlow(f"the request's headers did not come within {self.head_seconds:g} s"))

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what its parser does not understand: in our shape, and not into an answer."""
        del msg
        self._refuse(NoHttp("this is no request in HTTP/1.1"))

    def _refuse(self, error: CoeError) -> None:
        self._refused(error)
        self._head_is_over()
        if self._is_answering:
            self.cycle.keep_alive = False  # nothing else can be said in the middle of an answer
            self.flow.pause_reading()
            return
        body = json.dumps(error_body(error)).encode()
        head = f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        head += f"connection: close\r\n{REQUEST_ID}: {new_request_id()}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        """There is a request before this that is whole, or is being answered already, and its answer is not over."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)

    async def _refuse_whole_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = HeadTooLong(_TOO_LONG)
        self._refused(error)
        headers = {"connection": "close", REQUEST_ID: new_request_id()}
        await error_response(error, headers, scope["path"])(scope, receive, send)
