"""One engine's answer on its way to the caller: untouched, unless it is no answer but a failure. Knows no experts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from coe_server.engines.engine import EngineResponse
from coe_server.errors import EngineDied, EngineError, EngineRefused, UpstreamLimited
from coe_server.http.answer.event_stream import EventCutter, events_in, first_failure, is_opening
from coe_server.http.answer.outgoing import Outgoing
from coe_server.http.request_id import REQUEST_ID
from coe_server.retry_after import retry_after_seconds

LONGEST_COMPLAINT_BYTES = 1 << 20
_QUOTED_CHARACTERS = 300
_NOT_THE_CALLERS_FAULT = frozenset((401, 403, 407))  # our key is wrong over there, not the caller's here
# Of an answer's headers: what uvicorn or we write ourselves, cookies, and what a server elsewhere says of its own
# address and of our account there. Its limits beside those of the caller's key would be two answers to one question.
_OURS = ("date", "server", "set-cookie", REQUEST_ID)
_ELSEWHERE = ("alt-svc", "strict-transport-security")
_ACCOUNT = ("openai-organization", "openai-project", "anthropic-organization-id")
_NOT_FOR_CALLERS = frozenset((*_OURS, *_ELSEWHERE, *_ACCOUNT))
_NOT_FOR_CALLERS_EITHER = ("x-coe-", "x-ratelimit-", "anthropic-ratelimit-", "access-control-")

Listener = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Passage:
    """Where an answer goes. `headers` are ours; `begun` is called with its status when it begins.

    `is_last`: nobody else can answer, so an engine's own error is the best there is. `listeners` hear every piece.
    """

    expert: str
    out: Outgoing
    headers: Mapping[str, str]
    begun: Callable[[int], None]
    is_last: bool
    listeners: tuple[Listener, ...] = ()

    async def carry(self, answer: EngineResponse) -> None:
        """Pass an answer on. Raises EngineError or Overloaded where it is none; `out` knows what was said."""
        if answer.status >= 300:
            await self._complaint(answer)
        elif is_event_stream(answer):
            await self._events(answer)
        else:
            async for chunk in answer.chunks():
                await self._say(answer, chunk)
            await self._begin(answer)
        await self.out.end()

    async def _events(self, answer: EngineResponse) -> None:
        """Events leave whole, and those before the first word with it: until then another expert may take over."""
        cutter, held = EventCutter(), b""
        async for chunk in answer.chunks():
            events = cutter.whole_events(chunk)
            failure = first_failure(events)
            sound = events if failure is None else events[: failure.start]
            held += sound
            if sound and (self.out.spoken or not all(map(is_opening, events_in(sound)))):
                await self._say(answer, held)
                held = b""
            if failure is not None:
                raise EngineDied(f"expert '{self.expert}' broke off its answer\n{failure.message}")
        await self._begin(answer)
        if held + cutter.rest:
            await self._say(answer, held + cutter.rest)

    async def _complaint(self, answer: EngineResponse) -> None:
        """What it says of the request is the caller's to read; what it says of itself is the operator's."""
        body = await _all_of(answer.chunks())
        quoted = body[:_QUOTED_CHARACTERS].decode(errors="replace")
        told = f"expert '{self.expert}' answered with status {answer.status}"
        if answer.status == 429:
            sentence = f"expert '{self.expert}' takes no more requests for now: its own server is at its limit"
            raise UpstreamLimited(f"{sentence}\n{quoted}", _retry_after(answer))
        if answer.status < 400:
            raise EngineError(f"{told}: it is to be asked at another address\n{_header(answer, 'location')}")
        if answer.status in _NOT_THE_CALLERS_FAULT:
            raise EngineError(f"expert '{self.expert}' did not accept this server's own credentials\n{told}: {quoted}")
        if answer.status >= 500 and not (self.is_last and _is_openai_error(body)):
            raise EngineError(f"{told}\n{quoted}")
        if not _is_openai_error(body):
            raise EngineRefused(told, answer.status, quoted)
        if self.out.headed:  # the caller waits for a stream that has begun
            body = self.out.error_event(json.loads(body))
        await self._say(answer, body)

    async def _say(self, answer: EngineResponse, piece: bytes) -> None:
        await self._begin(answer)
        for listener in self.listeners:
            listener(piece)
        await self.out.say(piece)

    async def _begin(self, answer: EngineResponse) -> None:
        if not self.out.spoken:
            passed_on = (pair for pair in answer.headers if not _is_not_for_callers(pair[0].lower()))
            await self.out.begin(answer.status, self.headers, passed_on)
            self.begun(answer.status)


def is_event_stream(answer: EngineResponse) -> bool:
    """Whether an answer comes as server-sent events, by its own word."""
    return any(n.lower() == "content-type" and v.startswith("text/event-stream") for n, v in answer.headers)


def _is_openai_error(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["error"], dict)
    except (ValueError, TypeError, KeyError):
        return False


def _header(answer: EngineResponse, name: str) -> str | None:
    return next((value for given, value in answer.headers if given.lower() == name), None)


def _retry_after(answer: EngineResponse) -> float:
    seconds = retry_after_seconds(_header(answer, "retry-after"), datetime.now(UTC))
    return 1.0 if seconds is None else seconds


async def _all_of(chunks: AsyncIterator[bytes]) -> bytes:
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) > LONGEST_COMPLAINT_BYTES:
            break
    return body


def _is_not_for_callers(header: str) -> bool:
    return header in _NOT_FOR_CALLERS or header.startswith(_NOT_FOR_CALLERS_EITHER)
