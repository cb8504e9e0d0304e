"""One client's connection: uvicorn's, with an end to heads that are too long, too slow or none. Knows no endpoints.

HTTP/1.1 is all that is spoken here: an offer to speak something else (`Upgrade`) is passed over (RFC 9110, 7.8).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coe_server.errors import CoeError, HeadTooLong, HeadTooSlow, NoHttp, UpgradeRequired
from coe_server.http.errors import IN_PLACE_OF_WEBSOCKET, NO_WEBSOCKET, error_body, error_response
from coe_server.http.headers import HARMLESS, REQUEST_ID, new_request_id

MOST_HEAD_BYTES = 64 * 1024  # request line and headers, or what is read between two pieces of a body
HEAD_SECONDS = 20.0  # from the first byte, or from the connection's beginning
_WEBSOCKET = b"websocket"
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
        self._wants_websocket = False  # what comes next, a request that is read once more

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(NoHttp("this is no request in HTTP/1.1"))
            return
        if self._unfinished_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLong(_TOO_LONG))

    def _parse(self, data: bytes) -> None:
        """The parser stops behind a head that offers an upgrade, and takes the body for the other protocol's."""
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":  # nothing is left of a request without its tunnel
                    raise
                rest = memoryview(rest)[offer.args[0] :]
                self._wants_websocket = self._begins_websocket
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)  # the old one is done if the connection is to close
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
                self.parser.feed_data(head)
            else:
                return

    def _head_without_offer(self) -> bytes:
        """The head that was read last, as if no upgrade had been offered."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                lines.append(b"connection: %b\r\n" % _other_options(value))
            elif name != b"upgrade":
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join((*lines, b"\r\n"))

    @property
    def _begins_websocket(self) -> bool:
        """What RFC 6455, 4.1 takes for the beginning of a WebSocket: any other request is answered all the same."""
        if self.parser.get_method() != b"GET" or self.parser.get_http_version() != "1.1":
            return False
        offers = b",".join(value for name, value in self.headers if name == b"upgrade")
        return _WEBSOCKET in (token.strip() for token in offers.lower().split(b","))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is read again, without its offer
        self._head_is_over()
        admitted = self.app
        if self._head_bytes > MOST_HEAD_BYTES:
            self.app = self._refuse_whole_head  # in its place: after the answers to those that came before it
        elif self._wants_websocket:
            self.app = self._refuse_websocket
        self._wants_websocket = False
        super().on_headers_complete()
        self.app = admitted

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

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

    def _refuse(self, error: CoeError) -> None:
        self._refused(error)
        self._head_is_over()
        if self._is_answering:
            self.cycle.keep_alive = False  # nothing else can be said in the middle of an answer
            self.flow.pause_reading()
            return
        body = json.dumps(error_body(error)).encode()
        head = f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        told = {"connection": "close", REQUEST_ID: new_request_id(), **HARMLESS}
        head += "".join(f"{name}: {value}\r\n" for name, value in told.items()) + "\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        """There is a request before this that is whole, or is being answered already, and its answer is not over."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)

    async def _refuse_whole_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._refuse_in_turn(HeadTooLong(_TOO_LONG), {"connection": "close"}, scope, receive, send)

    async def _refuse_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._refuse_in_turn(UpgradeRequired(NO_WEBSOCKET), IN_PLACE_OF_WEBSOCKET, scope, receive, send)

    async def _refuse_in_turn(
        self, error: CoeError, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._refused(error)
        told = {**headers, REQUEST_ID: new_request_id()}
        await error_response(error, told, scope["path"])(scope, receive, send)


def _other_options(connection: bytes) -> bytes:
    """What a Connection header says beside `upgrade`."""
    return b",".join(option for option in connection.split(b",") if option.strip().lower() != b"upgrade")
