"""One engine's answer on its way to the caller: untouched, unless it is no answer but a failure. Knows no experts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coe_server.engines.engine import EngineResponse
from coe_server.errors import CoeError, EngineDied, EngineError, EngineRefused, TooLongForExpert, UpstreamLimited
from coe_server.http.client_stream import Outgoing
from coe_server.http.headers import content_type, passed_headers
from coe_server.http.sse import (
    JUDGED_BYTES,
    LONGEST_HELD_BYTES,
    EventCutter,
    Opening,
    before_error,
    is_plain,
    parts_of,
)
from coe_server.upstream.complaint import Cause, json_value
from coe_server.upstream.reply import retry_after_seconds
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
_QUOTED_CHARACTERS = 300
_NO_ANSWER = frozenset((Cause.ACCOUNT, Cause.BUSY, Cause.BROKEN))  # under HTTP 200: nothing there is for the caller
_ABOUT_ACCOUNT = frozenset((401, 402, 403, 407))  # whatever the words
_MAY_REPEAT_THE_PROMPT = frozenset((400, 404, 413, 422))
_ACCOUNT_MEMBER = re.compile(rb'("user_id"\s*:\s*")([^"\\]*)')  # OpenRouter's, beside an error

Listener = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a request may be answered with: over which API, whether an empty text may be all there is, and whether
    there are several choices."""

    endpoint: str
    may_be_silent: bool = False
    has_several: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """Where an answer goes. `headers` are ours; `begun` is called with its status when it begins.

    `has_another`: whether another expert can be asked after this failure; else an engine's own error is the best there
    is. `failed` is told of a failure that the caller reads in the expert's own words. `is_remote`: what it says of an
    account is the operator's alone. `listeners` hear every piece.
    """

    expert: str
    out: Outgoing
    headers: Mapping[str, str]
    begun: Callable[[int], None]
    expects: Expectation
    has_another: Callable[[Verdict], bool]
    failed: Callable[[CoeError], None]
    is_remote: bool
    listeners: tuple[Listener, ...] = ()

    async def carry(self, answer: EngineResponse) -> None:
        """Pass an answer on. Raises EngineError or Overloaded where it is none; `out` knows what was said."""
        if not 200 <= answer.status < 300:
            await self._complaint(answer)
        elif _is_encoded(answer):  # in a way that cannot be read here
            await self._unread(answer)
        elif is_event_stream(answer):
            await self._events(answer)
        else:
            await self._body(answer)
        await self.out.end()

    async def _events(self, answer: EngineResponse) -> None:
        """Events leave whole, and those before the first word with it: until then another expert may take over."""
        cutter, opening = EventCutter(), Opening()
        async for chunk in answer.chunks():
            whole = cutter.whole_events(chunk)
            for events in (whole,) if self.out.spoken and is_plain(whole) else parts_of(whole):
                await self._hear(answer, opening, events)
                if len(events) > JUDGED_BYTES:  # others wait for their turn
                    await asyncio.sleep(0)
        await self._hear(answer, opening, cutter.rest)
        if self.out.spoken:
            return
        verdict = opening.verdict(self.expects.may_be_silent)
        if verdict is not None:
            self._let_pass(answer, verdict)
        await self._say(answer, bytes(opening.held))

    async def _hear(self, answer: EngineResponse, opening: Opening, events: bytes) -> None:
        sound, verdict = before_error(events, self.expects.has_several)
        if verdict is not None and not self._is_to_fail(answer, verdict):  # the caller's to read, with what follows
            self._let_pass(answer, verdict)
            sound = events
        if self.out.spoken:
            if sound:
                await self._say(answer, sound)
        elif opening.hear(sound) or (verdict is not None and sound is events):
            await self._say(answer, bytes(opening.held))
        elif len(opening.held) > LONGEST_HELD_BYTES:
            raise EngineError(f"expert '{self.expert}' sent {LONGEST_HELD_BYTES} bytes of events without a word")
        if verdict is not None and sound is not events:
            raise self._broken_off(answer, verdict)

    async def _body(self, answer: EngineResponse) -> None:
        """A body that is no stream of events is looked at before it leaves: whole, or a long one at both ends."""
        held = bytearray()
        async for chunk in answer.chunks():
            held += chunk
            if len(held) > 2 * LOOKED_AT_BYTES:
                if not self.out.spoken:
                    beginning = bytes(held[:LOOKED_AT_BYTES])
                    self._require_answer(answer, beginning, judge_beginning(beginning))
                await self._say(answer, bytes(held[:-LOOKED_AT_BYTES]))
                del held[:-LOOKED_AT_BYTES]
        body = bytes(held)
        if self.out.spoken:
            self._require_answer(answer, body, judge_end(body))
        else:
            verdict = judge_body(body, self.expects.endpoint, self.expects.may_be_silent)
            self._require_answer(answer, body, verdict)
        await self._say(answer, body)

    def _require_answer(self, answer: EngineResponse, body: bytes, verdict: Verdict) -> None:
        self._let_pass(answer, verdict)
        if self.out.headed and not self.out.spoken and not is_events(body):  # the caller was told that events follow
            raise self._failure(answer, NO_STREAM)

    async def _unread(self, answer: EngineResponse) -> None:
        """Bytes as they came, each as it comes."""
        if self.out.headed:
            raise self._failure(answer, NO_STREAM)
        async for chunk in answer.chunks():
            await self._say(answer, chunk)
        await self._begin(answer)

    async def _complaint(self, answer: EngineResponse) -> None:
        """What it says of the request is the caller's to read; what it says of itself is the operator's."""
        body = b"" if _is_encoded(answer) else await _all_of(answer.chunks())
        verdict = judge_status(answer.status, body)
        if verdict.is_ours or answer.status < 400:
            raise self._failure(answer, verdict)
        self._let_pass(answer, verdict)
        if _openai_error(body) is None:
            raise self._refusal(answer, verdict, body)
        body = _without_account(body) if self.is_remote else body
        if self.out.headed:  # the caller waits for a stream that has begun
            body = self.out.error_event(_openai_error(body) or {})
        await self._say(answer, body)

    def _let_pass(self, answer: EngineResponse, verdict: Verdict) -> None:
        """Raise a failure, unless the caller is to read what came."""
        if self._is_to_fail(answer, verdict):
            raise self._failure(answer, verdict)
        if verdict.is_failure:
            self.failed(self._failure(answer, verdict))

    def _is_to_fail(self, answer: EngineResponse, verdict: Verdict) -> bool:
        """Another expert is asked, or the words are not for the caller; else it reads them."""
        is_about_account = verdict.about_account and (self.is_remote or answer.status in _ABOUT_ACCOUNT)
        if verdict.cause is Cause.LIMITED or is_about_account:
            return True
        if not verdict.is_failure:
            return False
        no_answer = answer.status < 400 and verdict.cause in _NO_ANSWER
        return no_answer or self.has_another(verdict)

    def _broken_off(self, answer: EngineResponse, verdict: Verdict) -> CoeError:
        """An error in a stream: where the engine runs here, it may be dead."""
        if self.out.spoken or verdict.cause in {Cause.BROKEN, Cause.BUSY}:
            return self._because(EngineDied(self._told("broke off its answer", verdict)), answer, verdict)
        return self._failure(answer, verdict)

    def _failure(self, answer: EngineResponse, verdict: Verdict) -> CoeError:
        """Why the expert gave no answer, in words that every caller may read."""
        expert, status = f"expert '{self.expert}'", verdict.status
        match verdict.cause:
            case Cause.LIMITED:
                told = self._told("takes no more requests for now: its own server is at its limit", verdict)
                return UpstreamLimited(told, _asked_seconds(answer))
            case Cause.CONTEXT if not verdict.about_account:
                return TooLongForExpert(f"the request is longer than {expert} takes")
            case Cause.ACCOUNT:
                error = EngineError(self._told("did not accept this server's own account or credentials", verdict))
            case _ if answer.status < 400 and answer.status >= 300:
                where = _header(answer, "location")
                error = EngineError(f"{expert} answered with status {status}: it is to be asked elsewhere\n{where}")
            case _:
                error = EngineError(self._told(_what_happened(answer, verdict), verdict))
        return self._because(error, answer, verdict)

    def _because(self, error: EngineError, answer: EngineResponse, verdict: Verdict) -> EngineError:
        error.cause, error.backs_off = str(verdict.status), verdict.backs_off
        error.asked_seconds = _asked_seconds(answer)
        return error

    def _refusal(self, answer: EngineResponse, verdict: Verdict, body: bytes) -> EngineError:
        """An error in a shape of its own, said again in OpenAI's."""
        told = f"expert '{self.expert}' answered with status {answer.status}"
        if answer.status >= 500:  # of itself: that is the operator's
            error = self._because(EngineError(f"{told}\n{_quoted(verdict)}"), answer, verdict)
            error.status, error.retry_after_seconds = answer.status, error.asked_seconds
            return error
        refused = EngineRefused(told, answer.status, body[:_QUOTED_CHARACTERS].decode(errors="replace"))
        return self._because(refused, answer, verdict)

    def _told(self, what: str, verdict: Verdict) -> str:
        return f"expert '{self.expert}' {what}\n{_quoted(verdict)}"

    async def _say(self, answer: EngineResponse, piece: bytes) -> None:
        await self._begin(answer)
        for listener in self.listeners:
            listener(piece)
        await self.out.say(piece)

    async def _begin(self, answer: EngineResponse) -> None:
        if not self.out.spoken:
            await self.out.begin(answer.status, self.headers, passed_headers(answer.headers))
            self.begun(answer.status)


def is_event_stream(answer: EngineResponse) -> bool:
    """Whether an answer comes as server-sent events, by its own word."""
    return content_type(answer.headers) == "text/event-stream"


def _is_encoded(answer: EngineResponse) -> bool:
    return (_header(answer, "content-encoding") or "identity").strip().lower() != "identity"


def _what_happened(answer: EngineResponse, verdict: Verdict) -> str:
    if answer.status >= 400:
        return f"answered with status {answer.status}"
    return f"gave no answer: {verdict.message}" if verdict.is_ours else "answered with an error"


def _quoted(verdict: Verdict) -> str:
    """The expert's own words for the log, unless they may repeat what was asked."""
    told = verdict.message[:_QUOTED_CHARACTERS]
    return f"status {verdict.status}" if verdict.status in _MAY_REPEAT_THE_PROMPT else f"{verdict.status}: {told}"


def _openai_error(body: bytes) -> Mapping[str, Any] | None:
    """The body of an error in OpenAI's shape; None for any other."""
    try:
        told = json_value(body)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("error"), dict) else None


def _without_account(body: bytes) -> bytes:
    """An error as it came and as long as it was, but for who we are over there."""
    return _ACCOUNT_MEMBER.sub(lambda found: found[1] + b"*" * len(found[2]), body)


def _header(answer: EngineResponse, name: str) -> str | None:
    return next((value for given, value in answer.headers if given.lower() == name), None)


def _asked_seconds(answer: EngineResponse) -> float | None:
    """What its server asked to wait; None where it did not say."""
    return retry_after_seconds(_header(answer, "retry-after"), datetime.now(UTC))


async def _all_of(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > LONGEST_COMPLAINT_BYTES:
            break
    return bytes(body)
