"""Relays one engine's answer to the caller byte for byte, unless it is a failure."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from coe_server.engines.engine import EngineResponse
from coe_server.errors import EngineError
from coe_server.http.answers.own_name import under_own_name
from coe_server.http.answers.sse import (
    JUDGED_BYTES,
    LONGEST_HELD_BYTES,
    EventCutter,
    Opening,
    before_error,
    is_plain,
    parts_of,
)
from coe_server.http.answers.usage import UsageInBody, UsageInEvents, UsageReader
from coe_server.http.attempt import Attempt
from coe_server.http.expert_errors import broken_off, failure, refusal
from coe_server.http.headers import content_type, header, passed_headers
from coe_server.http.previous_responses import ResponseId
from coe_server.http.routed_request import RoutedRequest
from coe_server.upstream.complaint import Cause, json_value
from coe_server.upstream.verdict import (
    LOOKED_AT_BYTES,
    NO_STREAM,
    Verdict,
    is_events,
    judge_beginning,
    judge_body,
    judge_end,
    judge_status,
)

LONGEST_COMPLAINT_BYTES = 2 * LOOKED_AT_BYTES
_NO_ANSWER = frozenset((Cause.ACCOUNT, Cause.BUSY, Cause.BROKEN))  # under HTTP 200: the caller has no use for it
_ABOUT_ACCOUNT = frozenset((401, 402, 403, 407))  # whatever the message says
_ACCOUNT_MEMBER = re.compile(rb'("user_id"\s*:\s*")([^"\\]*)')  # OpenRouter's, beside an error


async def relay(attempt: Attempt, answer: EngineResponse) -> None:
    """Relay an answer. Raises EngineError or Overloaded for a failure; `attempt.out` records what was sent.

    The tokens stated in the answer are logged in any case, also for an incomplete answer.
    """
    if attempt.expert in attempt.request.service.presets:
        answer = under_own_name(answer, attempt.expert)
    relayed = _Relay(attempt, answer)
    try:
        await relayed.carry()
    finally:
        attempt.log.used(relayed.usage.usage())


class _Relay:
    """One answer. A remote expert's messages about the account are for the operator only."""

    def __init__(self, attempt: Attempt, answer: EngineResponse) -> None:
        self._attempt = attempt
        self._answer = answer
        self._out = attempt.out
        self._parsed = attempt.request.parsed
        self._is_encoded = (header(answer.headers, "content-encoding") or "identity").strip().lower() != "identity"
        kind = content_type(answer.headers) or ""
        self._is_event_stream = kind == "text/event-stream"
        self._is_json = kind.endswith("json")
        self.usage: UsageReader = UsageInEvents() if self._is_event_stream else UsageInBody()
        self._id_listener = _id_listener(attempt.request, attempt.expert)
        self._heard = attempt.request.heard

    async def carry(self) -> None:
        """The whole answer."""
        if not 200 <= self._answer.status < 300:
            await self._complaint()
        elif self._is_encoded:  # with an unknown coding
            await self._unread()
        elif self._parsed.api.media and not self._is_event_stream and not self._is_json:
            await self._media()
        elif self._is_event_stream:
            await _EventRelay(self, self._attempt, self._answer).carry()
        else:
            await self._body()
        await self._out.end()

    async def _body(self) -> None:
        """Check a body that is not an event stream before it is sent: whole, or both ends of a long one."""
        held = bytearray()
        async for chunk in self._answer.chunks():
            held += chunk
            if len(held) > 2 * LOOKED_AT_BYTES:
                if not self._out.spoken:
                    beginning = bytes(held[:LOOKED_AT_BYTES])
                    self._require_answer(beginning, judge_beginning(beginning))
                await self.say(bytes(held[:-LOOKED_AT_BYTES]))
                del held[:-LOOKED_AT_BYTES]
        body = bytes(held)
        if self._out.spoken:
            self._require_answer(body, judge_end(body))
        else:
            verdict = judge_body(
                body, self._parsed.api.answered_as, self._attempt.request.may_be_silent(self._attempt.expert)
            )
            self._require_answer(body, verdict)
            body = _for_caller(self._attempt, body, verdict)
        await self.say(body)

    def _require_answer(self, body: bytes, verdict: Verdict) -> None:
        _let_pass(self._attempt, self._answer, verdict)
        if self._out.headed and not self._out.spoken and not is_events(body):  # the headers promised events
            raise failure(self._attempt.expert, self._answer, NO_STREAM)

    async def _unread(self) -> None:
        """Relay bytes unchanged as they arrive."""
        if self._out.headed:
            raise failure(self._attempt.expert, self._answer, NO_STREAM)
        async for chunk in self._answer.chunks():
            await self.say(chunk)
        await self._begin()

    async def _media(self) -> None:
        """Relay audio, an image or plain text as it arrives; only an empty body is a failure."""
        async for chunk in self._answer.chunks():
            await self.say(chunk)
        if not self._out.spoken:
            raise failure(self._attempt.expert, self._answer, judge_body(b"", "any", may_be_silent=False))

    async def _complaint(self) -> None:
        """Send an error about the request to the caller; raise an error of the expert itself, for the operator."""
        answer, expert = self._answer, self._attempt.expert
        body = b"" if self._is_encoded else await _all_of(answer.chunks())
        verdict = judge_status(answer.status, body)
        if verdict.is_ours or answer.status < 400:
            raise failure(expert, answer, verdict)
        _let_pass(self._attempt, self._answer, verdict)
        if _openai_error(body) is None:
            raise refusal(expert, answer, verdict, body)
        body = _for_caller(self._attempt, body, verdict)
        if self._out.headed:  # the caller waits for a stream that has begun
            body = self._out.error_event(_openai_error(body) or {})
        await self.say(body)

    async def say(self, piece: bytes) -> None:
        if not self._out.spoken:
            await self._begin()
        self.usage.hear(piece)
        if self._id_listener is not None:
            self._id_listener(piece)
        if self._heard is not None:
            self._heard(piece)
        await self._out.say(piece)

    async def _begin(self) -> None:
        if not self._out.spoken:
            self._attempt.begins()
            await self._out.begin(self._answer.status, self._attempt.headers, passed_headers(self._answer.headers))
            self._attempt.begun(self._answer.status)


class _EventRelay:
    """Relays whole events. Those before the first content are held until it arrives: until then another expert may be
    tried."""

    def __init__(self, relayed: _Relay, attempt: Attempt, answer: EngineResponse) -> None:
        self._relayed = relayed
        self._attempt = attempt
        self._answer = answer
        self._out = attempt.out
        self._parsed = attempt.request.parsed
        self._may_be_silent = attempt.request.may_be_silent(attempt.expert)
        self._opening = Opening()

    async def carry(self) -> None:
        """The whole stream."""
        cutter = EventCutter()
        async for chunk in self._answer.chunks():
            whole = cutter.whole_events(chunk)
            at_once = len(whole) <= JUDGED_BYTES or (self._out.spoken and is_plain(whole))
            for events in (whole,) if at_once else parts_of(whole):
                if self._out.spoken and is_plain(events):  # most are
                    if events:
                        await self._relayed.say(events)
                else:
                    await self._judge(events)
                if len(events) > JUDGED_BYTES:  # yield to other requests
                    await asyncio.sleep(0)
        await self._end(cutter.rest)

    async def _end(self, rest: bytes) -> None:
        if rest:
            await self._judge(rest)
        if not self._out.spoken:
            verdict = self._opening.verdict(self._may_be_silent)
            if verdict is not None:
                _let_pass(self._attempt, self._answer, verdict)
            await self._relayed.say(bytes(self._opening.held))

    async def _judge(self, events: bytes) -> None:
        """Relay these events up to the first error event; raise that as a failure."""
        sound, verdict = before_error(events, self._parsed.fan_out > 1)
        is_for_caller = verdict is not None and not _is_to_fail(self._attempt, self._answer.status, verdict)
        if verdict is not None and is_for_caller:
            _let_pass(self._attempt, self._answer, verdict)
            sound = _for_caller(self._attempt, events, verdict)  # with what follows
        if self._out.spoken:
            if sound:
                await self._relayed.say(sound)
        elif self._opening.hear(sound) or is_for_caller:
            await self._relayed.say(bytes(self._opening.held))
        elif len(self._opening.held) > LONGEST_HELD_BYTES:
            raise EngineError(
                f"expert '{self._attempt.expert}' sent {LONGEST_HELD_BYTES} bytes of events without content"
            )
        if verdict is not None and not is_for_caller:
            raise broken_off(self._attempt.expert, self._answer, verdict, self._out.spoken)


def _let_pass(attempt: Attempt, answer: EngineResponse, verdict: Verdict) -> None:
    """Raise a failure, unless the caller should get the expert's response."""
    if _is_to_fail(attempt, answer.status, verdict):
        raise failure(attempt.expert, answer, verdict)
    if verdict.is_failure:
        attempt.failures.note(attempt.expert, failure(attempt.expert, answer, verdict))


def _is_to_fail(attempt: Attempt, status: int, verdict: Verdict) -> bool:
    """True if another expert is tried, or if the message is not for the caller."""
    is_about_account = verdict.about_account and (not attempt.lease.mortal or status in _ABOUT_ACCOUNT)
    if verdict.cause is Cause.LIMITED or is_about_account:
        return True
    if not verdict.is_failure:
        return False
    no_answer = status < 400 and verdict.cause in _NO_ANSWER
    return no_answer or attempt.another_may_answer(verdict)


def _id_listener(request: RoutedRequest, expert: str) -> ResponseId | None:
    """A listener that stores the response's id, for `previous_response_id`."""
    if request.parsed.api.endpoint != "responses":
        return None
    made, owner = request.service.made, request.key_name
    return ResponseId(lambda found: made.remember(found, expert, owner))


def _openai_error(body: bytes) -> Mapping[str, Any] | None:
    """The body of an error in OpenAI's shape; None for any other."""
    try:
        told = json_value(body)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("error"), dict) else None


def _for_caller(attempt: Attempt, body: bytes, verdict: Verdict) -> bytes:
    """A remote expert's error unchanged in length, without this server's account name at the provider."""
    if attempt.lease.mortal or verdict.cause is None:
        return body
    return _ACCOUNT_MEMBER.sub(lambda found: found[1] + b"*" * len(found[2]), body)


async def _all_of(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > LONGEST_COMPLAINT_BYTES:
            break
    return bytes(body)
