"""The client's side of one answer: sent data, deadline, keep-alive comments, client disconnect.

Does not depend on engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from coe_server.errors import CoeError, DeadlineExceeded, RequestError
from coe_server.http.errors import error_event, error_response, event_of
from coe_server.http.headers import answering

DEADLINE = "x-request-timeout"
LAST_EVENT_SECONDS = 5.0  # for sending an error event to a client that may not be reading
_UNBUFFERED = ("x-accel-buffering", "no")  # nginx holds pieces back until a buffer is full
_STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_ENDS_OF_EVENTS = (b"\n\n", b"\n\r\n", b"\r\r")
_CHANGED_IN_STREAMS = frozenset(("content-length", _UNBUFFERED[0]))


class Outgoing:
    """`status`: the sent status, None before. `spoken`: a part of the answer was sent, so that no other expert can be
    tried. `ended`: the whole answer was sent.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        self.spoken = False
        self.ended = False
        self.said_at = 0.0  # in the loop's time, when the last piece was sent
        self.is_event_stream = False  # an event or a comment may be added
        self._is_between_events = True
        self._scope = scope
        self._send = send

    @property
    def headed(self) -> bool:
        """True if the headers were sent."""
        return self.status is not None

    async def begin(self, status: int, headers: Mapping[str, str], others: Iterable[tuple[str, str]] = ()) -> None:
        """Send the status and all headers. If headers were sent before, send a comment that names the expert."""
        if not self.headed:
            await self._send_headers(status, (*others, *headers.items()))
        elif not self.spoken:
            await self._comment(answering(headers))

    async def say(self, piece: bytes) -> None:
        """Send a part of the answer."""
        self.spoken = True
        self.said_at = asyncio.get_running_loop().time()
        self._is_between_events = piece.endswith(_ENDS_OF_EVENTS)
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def wait(self, headers: Mapping[str, str], state: str) -> None:
        """Send a comment to keep proxies from closing the connection while the expert is silent.

        Before the first content it follows the headers; later it is between two events.
        """
        if self.ended:
            return
        if not self.headed:
            await self._send_headers(200, (*_STREAM_HEADERS, *headers.items()))
        if self.is_event_stream and self._is_between_events:
            await self._comment(state)

    async def end(self) -> None:
        """End the complete answer."""
        self.spoken = self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: CoeError, headers: Mapping[str, str]) -> None:
        """Send an error response or, in a stream, an error event.

        Any other body stays incomplete, so that the client does not mistake it for a complete one.
        """
        if not self.headed:
            self.status = error.status
            await error_response(error, headers, self._scope["path"])(self._scope, _disconnected, self._send)
            return
        if self.is_event_stream:
            event = error_event(error, self._scope["path"])
            if not self._is_between_events:
                event = b"\n\n" + event
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_EVENT_SECONDS):
                    await self._send({"type": "http.response.body", "body": event, "more_body": False})

    def error_event(self, told: Mapping[str, Any]) -> bytes:
        """Send an engine's own error as an event, in a stream that has begun."""
        return event_of(told, self._scope["path"])

    async def _send_headers(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status
        pairs = [(name.lower(), value) for name, value in headers]
        self.is_event_stream = _is_plain_event_stream(dict(pairs))
        if self.is_event_stream:  # an error event, or comments, may be added to it
            pairs = [pair for pair in pairs if pair[0] not in _CHANGED_IN_STREAMS]
            pairs.append(_UNBUFFERED)
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _comment(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": f": coe {text}\n\n".encode(), "more_body": True})


def _is_plain_event_stream(headers: Mapping[str, str]) -> bool:
    """Nothing can be added to a compressed stream."""
    is_plain = headers.get("content-encoding", "identity").strip().lower() == "identity"
    return is_plain and headers.get("content-type", "").lower().startswith("text/event-stream")


async def _disconnected() -> Message:
    return {"type": "http.disconnect"}


class ClientDisconnect:
    """A context whose content is cancelled when the client disconnects, unless `is_answered` says that it may.

    `happened` is set afterwards; nothing is raised. The request's body must have been read already.
    """

    def __init__(self, receive: Receive, is_answered: Callable[[], bool]) -> None:
        self.happened = False
        self._receive = receive
        self._is_answered = is_answered

    async def __aenter__(self) -> ClientDisconnect:
        task = asyncio.current_task()
        assert task is not None, "a request is answered inside a task"
        self._answering = task
        self._listening: asyncio.Task[None] | None = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        listening, self._listening = self._listening, None  # task -> coroutine -> self is a reference cycle
        assert listening is not None, "it was entered"
        listening.cancel()
        if not self.happened:
            return False
        self._answering.uncancel()
        return kind is asyncio.CancelledError

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_answered():
            self.happened = True
            self._answering.cancel()


class KeepAlive:
    """A context in which `say` is called after each silent period of `every_seconds`, so that no proxy closes the
    connection.

    `silent_since` is when something was sent last, in the loop's time. Most answers end within the first period; until
    then there is a timer and no task.
    """

    def __init__(
        self, every_seconds: float, say: Callable[[], Awaitable[None]], silent_since: Callable[[], float]
    ) -> None:
        self._every_seconds = every_seconds
        self._say = say
        self._silent_since = silent_since
        self._saying: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_seconds, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._saying is not None:
            self._saying.cancel()

    def _begin(self) -> None:
        self._saying = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left_seconds = self._silent_since() + self._every_seconds - loop.time()
            if left_seconds <= 0:
                await self._say()
                left_seconds = self._every_seconds
            await asyncio.sleep(left_seconds)


def deadline_of(headers: Mapping[str, str]) -> float | None:
    """The caller's own deadline (`x-request-timeout`, in seconds from now), in the running loop's time; None without
    one. Raises RequestError."""
    given = headers.get(DEADLINE)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise RequestError(f"{DEADLINE}: {given!r} is not a number of seconds above 0", DEADLINE)
    return asyncio.get_running_loop().time() + seconds


def within(due: float | None) -> AbstractAsyncContextManager[None]:
    """A context that ends when the caller's deadline passes, if there is one. Raises DeadlineExceeded."""
    return nullcontext() if due is None else _within(due)


@asynccontextmanager
async def _within(due: float) -> AsyncIterator[None]:
    deadline = asyncio.timeout_at(due)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(f"the deadline given with {DEADLINE} has passed") from error
