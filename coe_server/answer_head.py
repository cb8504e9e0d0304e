"""The head of an answer, bounded: so many interim answers (1xx), so many bytes, no switch of protocols. Knows no body.

aiohttp's client reads interim answers without end, on the event loop. Every connection of ours is made by `bound`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import BaseConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

MOST_INTERIM = 16  # of one answer: 100 once, 103 for a few hints
LONGEST_HEAD_BYTES = 1 << 20  # with all interim answers
_READ_BYTES = 4 * 1024  # of a head, at a time: a hundred interim answers have room in it


def bound(connector: BaseConnector) -> None:
    """Connections that this connector makes from now on take no head beyond the bounds."""
    connector._factory = partial(_bounded, connector._loop)


class BoundedHead(ResponseHandler):
    """aiohttp's side of a connection, which fails where the head of an answer goes on and on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._head_bytes = 0
        self._has_head = True  # between two answers there is none to be bounded

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        self._interim = self._head_bytes = 0
        self._has_head = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        start = 0
        while not self._has_head and start < len(data):
            piece = data[start : start + _READ_BYTES]
            start += len(piece)
            self._head_bytes += len(piece)
            if self._head_bytes > LONGEST_HEAD_BYTES:
                self._fail(f"the head of its answer is longer than {LONGEST_HEAD_BYTES:,} bytes")
            if self._exception is not None:
                return
            super().data_received(piece)
        if start < len(data) or not data:
            super().data_received(data[start:] if start else data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        status = data[0].code
        if status == 101:
            self._fail("it switched protocols (101), which was not asked for")
        elif status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                self._fail(f"more than {MOST_INTERIM} interim answers (1xx) before the answer")
        else:
            self._has_head = True
        if self._exception is None:
            super().feed_data(data, size)

    def _fail(self, why: str) -> None:
        if self._exception is None:
            self.set_exception(HttpProcessingError(message=why))
            if self.transport is not None:
                self.transport.close()


def _bounded(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return BoundedHead(loop)
