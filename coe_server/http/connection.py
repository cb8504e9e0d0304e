"""One client's connection: uvicorn's, which rejects headers that are too long, too slow or malformed.

Does not depend on endpoints. Only HTTP/1.1 is supported: an offer of another protocol (`Upgrade`) is ignored (RFC 9110,
7.8).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from coe_server.errors import CoeError, HeadersTooLong, HeadersTooSlow, MalformedHttp, UpgradeRequired
from coe_server.http.errors import IN_PLACE_OF_WEBSOCKET, NO_WEBSOCKET, error_body, error_response
from coe_server.http.headers import HARMLESS, REQUEST_ID, new_request_id
from coe_server.http.joined_head import JoinedHead

Headers = list[tuple[bytes, bytes]]

MOST_HEADER_BYTES = 64 * 1024  # request line and headers, or what is read between two pieces of a body
MOST_PIPELINED = 32  # requests of one connection that wait for the answer to an earlier one
MOST_HEADERS = 200  # of a request: each lookup reads them all
HEADER_SECONDS = 20.0  # from the first byte, or from the connection's beginning
_REJECTED_URL_BYTES = 1024  # of a target that is too long: enough to know the API
_WEBSOCKET = b"websocket"
_TOO_LONG = f"the request line and headers are longer than {MOST_HEADER_BYTES} bytes"
_TOO_MANY = f"the request has more than {MOST_HEADERS} headers"


class Connection(HttpToolsProtocol):
    """Rejects headers that are too long or too slow; a body's limits are enforced where it is read.

    Long headers are detected between two reads of the socket, and measured when they are complete.
    """

    header_seconds = HEADER_SECONDS

    def __init__(self, *args: Any, rejected: Callable[[CoeError], None], **options: Any) -> None:
        """`rejected` is called with each error."""
        super().__init__(*args, **options)
        self._rejected = rejected
        self._unfinished_bytes = 0  # of headers or a trailer that are read and not known to be complete
        self._header_timer: asyncio.TimerHandle | None = None
        self._wants_websocket = False  # the next request, which is parsed once more
        self._body: list[bytes] = []  # of the request that is parsed, from this read of the socket

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.transport = JoinedHead(transport, self.loop)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._reject(MalformedHttp("malformed HTTP request; HTTP/1.1 is supported"))
            return
        self._pass_body_on()
        if self._unfinished_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
            self._reject(HeadersTooLong(_TOO_LONG))

    def _parse(self, data: bytes) -> None:
        """The parser stops behind headers that offer an upgrade, and takes the body for the other protocol's."""
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":  # a request for a tunnel alone
                    raise
                rest = memoryview(rest)[offer.args[0] :]
                self._wants_websocket = _begins_websocket(self.parser, self.headers)
                headers = _without_offer(self.parser, self.url, self.headers)
                self.parser = httptools.HttpRequestParser(self)  # the old one stops if the connection is to close
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
                self.parser.feed_data(headers)
            else:
                return

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_PIPELINED:  # the parser ends here; those before are answered, then it closes
            raise OverflowError("too many requests wait for the answer to an earlier one")
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is parsed again, without its offer
        self._headers_are_over()
        app = self.app
        if _size_bytes(self.parser.get_method(), self.url, self.headers) > MOST_HEADER_BYTES:
            self.app = _rejection(HeadersTooLong(_TOO_LONG), {"connection": "close"}, self._rejected)
            self.url = self.url[:_REJECTED_URL_BYTES]  # httptools parses none of 64 KiB
        elif len(self.headers) > MOST_HEADERS:
            self.app = _rejection(HeadersTooLong(_TOO_MANY), {"connection": "close"}, self._rejected)
        elif self._wants_websocket:
            self.app = _rejection(UpgradeRequired(NO_WEBSOCKET), IN_PLACE_OF_WEBSOCKET, self._rejected)
        self._wants_websocket = False
        super().on_headers_complete()
        self.app = app

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._pass_body_on()
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        self._body.append(body)

    def _pass_body_on(self) -> None:
        """uvicorn copies what it holds of the body for each piece: very small chunks are joined before."""
        if self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            super().on_body(body)

    def _expect_headers(self) -> None:
        self._headers_are_over()
        self._header_timer = self.loop.call_later(self.header_seconds, self._time_out)

    def _headers_are_over(self) -> None:
        self._unfinished_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_out(self) -> None:
        if not self.transport.is_closing():
            self._reject(HeadersTooSlow(f"the request's headers did not arrive within {self.header_seconds:g} s"))

    def _reject(self, error: CoeError) -> None:
        self._rejected(error)
        self._headers_are_over()
        if _is_answering(self.cycle):
            self.cycle.keep_alive = False  # an error cannot be sent in the middle of an answer
            self.flow.pause_reading()
            return
        body = json.dumps(error_body(error)).encode()
        headers = (
            f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        told = {"connection": "close", REQUEST_ID: new_request_id(), **HARMLESS}
        headers += "".join(f"{name}: {value}\r\n" for name, value in told.items()) + "\r\n"
        self.transport.write(headers.encode() + body)
        self.transport.close()


def _rejection(error: CoeError, headers: Mapping[str, str], rejected: Callable[[CoeError], None]) -> ASGIApp:
    """An application that answers one request with this error, in its turn: after the answers to earlier requests."""

    async def reject(scope: Scope, receive: Receive, send: Send) -> None:
        rejected(error)
        await error_response(error, {**headers, REQUEST_ID: new_request_id()}, scope["path"])(scope, receive, send)

    return reject


def _is_answering(cycle: RequestResponseCycle | None) -> bool:
    """True if the answer to an earlier request is in progress or due."""
    return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)


def _begins_websocket(parser: httptools.HttpRequestParser, headers: Headers) -> bool:
    """True if this is a WebSocket handshake (RFC 6455, 4.1); any other request is answered as usual."""
    if parser.get_method() != b"GET" or parser.get_http_version() != "1.1":
        return False
    offers = b",".join(value for name, value in headers if name == b"upgrade")
    return _WEBSOCKET in (token.strip() for token in offers.lower().split(b","))


def _without_offer(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """The last request line and headers again, without `Upgrade` and its option in `Connection`."""
    lines = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), url, parser.get_http_version().encode())]
    for name, value in headers:
        if name == b"connection":
            lines.append(b"connection: %b\r\n" % _other_options(value))
        elif name != b"upgrade":
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join((*lines, b"\r\n"))


def _size_bytes(method: bytes, url: bytes, headers: Headers) -> int:
    """Of request line and headers, with one space after each colon; the version takes 9 bytes, each line's end 2."""
    line = len(method) + 1 + len(url) + 9 + 2
    return line + sum(len(name) + 2 + len(value) + 2 for name, value in headers) + 2


def _other_options(connection: bytes) -> bytes:
    """The options of a Connection header beside `upgrade`."""
    return b",".join(option for option in connection.split(b",") if option.strip().lower() != b"upgrade")
