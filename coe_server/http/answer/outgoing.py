"""The caller's side of one answer: what was sent already, and what can therefore still be sent. Knows no engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Message, Scope, Send

from coe_server.errors import CoeError
from coe_server.http.answer.headers import answering
from coe_server.http.openai_errors import error_event, error_response, event_of

LAST_WORDS_SECONDS = 5.0  # for telling a client that may not be reading
_UNBUFFERED = ("x-accel-buffering", "no")  # nginx holds words and comments back until a buffer is full
_STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_ENDS_OF_EVENTS = (b"\n\n", b"\n\r\n", b"\r\r")
_CHANGED_IN_STREAMS = frozenset(("content-length", _UNBUFFERED[0]))


class Outgoing:
    """`status` is out, None before. `spoken`: so is a part of the answer, and nobody else can give it any more.

    `ended`: the last of it is out, too.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        self.spoken = False
        self.ended = False
        self.said_at = 0.0  # in the loop's time, when the last piece left
        self.is_event_stream = False  # one that something may be added to
        self._is_between_events = True
        self._scope = scope
        self._send = send

    @property
    def headed(self) -> bool:
        return self.status is not None

    async def begin(self, status: int, headers: Mapping[str, str], others: Iterable[tuple[str, str]] = ()) -> None:
        """The status and the headers, ours and others'. Where they are out already, a comment says what became true."""
        if not self.headed:
            await self._head(status, (*others, *headers.items()))
        elif not self.spoken:
            await self._comment(answering(headers))

    async def say(self, piece: bytes) -> None:
        """A part of the answer."""
        self.spoken = True
        self.said_at = asyncio.get_running_loop().time()
        self._is_between_events = piece.endswith(_ENDS_OF_EVENTS)
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def wait(self, headers: Mapping[str, str], state: str) -> None:
        """A comment for the proxies between us and the caller, while nothing is to be said: before the first word the
        headers too, where they are not out; later between two events."""
        if self.ended:
            return
        if not self.headed:
            await self._head(200, (*_STREAM_HEADERS, *headers.items()))
        if self.is_event_stream and self._is_between_events:
            await self._comment(state)

    async def end(self) -> None:
        """The answer is whole."""
        self.spoken = self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: CoeError, headers: Mapping[str, str]) -> None:
        """Say why as a response or, later, as an event; any other body stays incomplete and is not taken for whole."""
        if not self.headed:
            self.status = error.status
            await error_response(error, headers, self._scope["path"])(self._scope, _nobody, self._send)
            return
        if self.is_event_stream:
            event = error_event(error, self._scope["path"])
            if not self._is_between_events:
                event = b"\n\n" + event
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._send({"type": "http.response.body", "body": event, "more_body": False})

    def error_event(self, told: Mapping[str, Any]) -> bytes:
        """An engine's own error for a caller whose stream has begun."""
        return event_of(told, self._scope["path"])

    async def _head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status
        pairs = [(name.lower(), value) for name, value in headers]
        self.is_event_stream = _is_plain_event_stream(dict(pairs))
        if self.is_event_stream:  # an error event, or comments, may be added to it
            pairs = [pair for pair in pairs if pair[0] not in _CHANGED_IN_STREAMS]
            pairs.append(_UNBUFFERED)
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _comment(self, words: str) -> None:
        await self._send({"type": "http.response.body", "body": f": coe {words}\n\n".encode(), "more_body": True})


def _is_plain_event_stream(headers: Mapping[str, str]) -> bool:
    """What is coded cannot be added to."""
    is_plain = headers.get("content-encoding", "identity").strip().lower() == "identity"
    return is_plain and headers.get("content-type", "").lower().startswith("text/event-stream")


async def _nobody() -> Message:
    return {"type": "http.disconnect"}
