"""An answer of which nothing is passed on before its first tokens were judged: it stays, or another expert takes over.

The engine is asked for log-probabilities, which are taken out again unless the caller asked for them, too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from coe_server.engines.engine import EngineResponse
from coe_server.http.answers.sse import before_error
from coe_server.http.attempt import Attempt
from coe_server.http.bodies.presets import Changes
from coe_server.http.headers import certainty_header, content_type
from coe_server.http.logprobs import MOST_FOUND, Refusal, TakenFromBody, TakenFromEvents, asking, refusal_in
from coe_server.http.routed_request import RoutedRequest
from coe_server.routing.certainty import WHOLE
from coe_server.routing.decision import RoutingDecision
from coe_server.routing.handover import Judge
from coe_server.routing.router import Router
from coe_server.upstream.answer import Says
from coe_server.upstream.verdict import LOOKED_AT_BYTES, events_in, judge_event

LONGEST_HELD_BYTES = 256 * 1024  # of a stream, without its log-probabilities
_REFUSALS = frozenset((400, 404, 422, 501))  # to tell log-probabilities, or for a reason of the request's own


class HandsOver(Exception):
    """The answer is given up: another expert takes over."""

    def __init__(self, decision: RoutingDecision) -> None:
        super().__init__()
        self.decision = decision


class RefusesLogprobs(Exception):
    """The engine refused the request because log-probabilities were asked for."""


class Judging:
    """The judgement of one expert's answer. `members`: what its engine is asked for beside the caller's body."""

    def __init__(self, request: RoutedRequest, decision: RoutingDecision, judge: Judge, members: Changes) -> None:
        self.members = members
        self._request = request
        self._decision = decision
        self._judge = judge

    @classmethod
    def of(cls, request: RoutedRequest, decision: RoutingDecision) -> Judging | None:
        """None for an answer that is passed on as it comes."""
        router = request.router
        if not isinstance(router, Router) or request.parsed.fan_out > 1:
            return None
        judge = router.judges.of(decision, request.conversation, request.options, request.is_streamed)
        if judge is None or not request.serving.tellers.may_tell(decision.expert):
            return None
        members = asking(request.parsed.api, request.parsed.body, request.changes(decision.expert))
        return None if members is None else cls(request, decision, judge, members)

    def held(self, attempt: Attempt, answer: EngineResponse) -> EngineResponse:
        """The answer, held until it was judged. Reading it raises HandsOver if another expert takes over, and
        RefusesLogprobs if a refusal is certainly about them: for any other reason no request is sent twice.
        """
        tellers = self._request.serving.tellers
        if self.members and answer.status in _REFUSALS:
            return _Refused(answer, partial(tellers.refused, attempt.expert))
        if self.members and answer.status < 300:
            tellers.took(attempt.expert)
        encodings = [value for name, value in answer.headers if name.lower() == "content-encoding"]
        if not 200 <= answer.status < 300 or any(one.strip().lower() != "identity" for one in encodings):
            return answer
        kept = not self.members
        second = self._judge.likely_successor(self._decision)
        foreseen = self._request.service.cache.foreseen(second, self._judge.chance)
        return HeldAnswer(answer, self._judge.rule.tokens, kept, partial(self._judged, attempt), foreseen)

    def _judged(self, attempt: Attempt, logprobs: Sequence[float], held_seconds: float) -> None:
        request, due = self._request, self._request.due
        certainty = self._judge.certainty(logprobs)
        request.serving.tellers.told(attempt.expert)
        attempt.log.judged(certainty, held_seconds)
        left_seconds = math.inf if due is None else due - asyncio.get_running_loop().time()
        there, cache = request.service.availability(), request.service.cache
        others = (one.expert for one in self._decision.ranking)
        now = {name: there[name] for name in others if name in there and cache.may_wait(name, request.owner)}
        if (another := self._judge.successor(self._decision, certainty, now, left_seconds)) is not None:
            attempt.lease.speaks()  # its engine is well
            raise HandsOver(another)
        attempt.headers.update(certainty_header(certainty))


class _Refused:
    """An `EngineResponse` that refuses a request. Reading it raises RefusesLogprobs if that names them; `unclear` is
    called if the reason could be they."""

    def __init__(self, answer: EngineResponse, unclear: Callable[[], None]) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._unclear = unclear

    async def chunks(self) -> AsyncIterator[bytes]:
        pieces, body = self._answer.chunks(), bytearray()
        async for piece in pieces:
            body += piece
            if len(body) > LOOKED_AT_BYTES:
                break
        refusal = refusal_in(self.status, bytes(body))
        if refusal is Refusal.OF_LOGPROBS:
            raise RefusesLogprobs
        if refusal is Refusal.UNCLEAR:
            self._unclear()
        yield bytes(body)
        async for piece in pieces:
            yield piece


class HeldAnswer:
    """An `EngineResponse` without the log-probabilities that this server asked for (`kept`: with them).

    `judged` is called once, with the log-probabilities of the first `tokens` tokens (WHOLE: of all), or of all if they
    are fewer, and with the seconds since the first of them. It is not called for an answer without any, or with an
    error. It may raise. `beside` is entered while the answer is held.
    """

    def __init__(
        self,
        answer: EngineResponse,
        tokens: int,
        kept: bool,
        judged: Callable[[Sequence[float], float], None],
        beside: AbstractContextManager[None],
    ) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._tokens = tokens
        self._judged = judged
        self._beside = beside
        self._is_stream = content_type(answer.headers) == "text/event-stream"
        self._taken = TakenFromEvents(kept) if self._is_stream else TakenFromBody(kept)
        self._held = bytearray()
        self._held_since = math.inf

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body: the held part at once, then the rest as it arrives."""
        pieces = self._answer.chunks()
        with self._beside:
            await self._hold(pieces)
        yield self._released()
        async for piece in pieces:
            if passed := self._taken.hear(piece):
                yield passed
        if rest := self._taken.end():
            yield rest

    async def _hold(self, pieces: AsyncIterator[bytes]) -> None:
        """Read until enough is known, or until the end."""
        async for piece in pieces:
            passed = self._taken.hear(piece)
            self._held += passed
            if self._taken.found:
                self._held_since = min(self._held_since, time.perf_counter())
            if not self._is_to_hold(passed):
                return
        self._held += self._taken.end()
        if not self._is_stream:
            self._tell_length(len(self._held))

    def _is_to_hold(self, passed: bytes) -> bool:
        """False once enough is known, or if nothing will be."""
        if not self._is_stream:
            return not passed
        if len(self._taken.found) >= (MOST_FOUND if self._tokens == WHOLE else self._tokens):
            return False
        if not self._taken.found and any(judge_event(event).says is Says.WORD for event in events_in(passed)):
            return False  # words without log-probabilities: this engine tells none
        return len(self._held) < LONGEST_HELD_BYTES and before_error(passed)[1] is None

    def _released(self) -> bytes:
        """The held part. Of a stream with an error only the error: the expert has failed before its first word."""
        found, held = self._taken.found, bytes(self._held)
        self._held.clear()
        sound, error = before_error(held) if self._is_stream else (held, None)
        if error is not None:
            return held[len(sound) :]
        if found:
            held_seconds = max(0.0, time.perf_counter() - self._held_since)
            self._judged(found if self._tokens == WHOLE else found[: self._tokens], held_seconds)
        return held

    def _tell_length(self, size_bytes: int) -> None:
        """The length of the body as it is now, where its length was told."""
        self.headers = tuple(
            (name, str(size_bytes) if name.lower() == "content-length" else value) for name, value in self.headers
        )
