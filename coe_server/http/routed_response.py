"""The response that owns a lease: waits for an expert, relays its answer, and releases the lease.

A generator that never starts never cleans up; a response object is always called, so it holds the lease.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.queue import Lease
from coe_server.cluster.engine import may_go_on
from coe_server.engines.engine import EngineResponse
from coe_server.errors import (
    CoeError,
    EngineDied,
    EngineError,
    EngineRefused,
    ExpertUnavailable,
    Overloaded,
    TooLongForExpert,
    UnknownModel,
    UpstreamLimited,
    first_line,
)
from coe_server.http.attempt import Attempt, Failures
from coe_server.http.client_stream import ClientDisconnect, KeepAlive, Outgoing, within
from coe_server.http.errors import unexpected
from coe_server.http.headers import decision_headers, node_headers, wait_header
from coe_server.http.held import HandsOver, Judging, RefusesLogprobs
from coe_server.http.relay import relay
from coe_server.http.request_log import RequestLog
from coe_server.http.routed_request import NOTHING_ASKED, RoutedRequest
from coe_server.http.serving import Service
from coe_server.routing.decision import RoutingDecision

logger = logging.getLogger(__name__)

_CHOSEN_BY_CALLER = frozenset(("requested", "sticky"))  # decisions that do not depend on an expert's tier


class RoutedResponse(Response):
    """The answer to one request. If the client disconnects, it leaves the queue or the engine."""

    def __init__(self, request: RoutedRequest, decision: RoutingDecision, log: RequestLog) -> None:
        self.background = None
        self._request = request
        self._cache = request.service.cache
        self._decision = decision
        self._log = log
        self._failures = Failures(self._cache)
        self._may_choose_again = decision.reason not in _CHOSEN_BY_CALLER
        self._waited: dict[str, str] = {}  # for the current expert
        self._is_answered = False
        self._refused_logprobs: str | None = None  # the expert that refused them
        self._tries = request.tries(decision)  # nodes, for the current expert

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._out = Outgoing(scope, send)
        hung_up = False
        try:
            hung_up = await self._answer_until_disconnect(receive)
        except CoeError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001  a mistake of ours; the caller may be in the middle of a stream
            await self._fail(unexpected(error))
        finally:
            self._failures.close()
            self._log.close(hung_up)
            if (upload := self._request.parsed.upload) is not None:
                upload.close()
            if self._is_answered and self._request.service.comparer is not None:
                self._request.service.comparer.offer(self._request, self._decision)

    async def _fail(self, error: CoeError) -> None:
        _warn(self._decision, self._out, error)
        self._log.failed(error, self._out.status or error.status)
        await self._out.fail(error, decision_headers(self._decision) | self._waited)

    async def _answer_until_disconnect(self, receive: Receive) -> bool:
        """The answer, within the caller's own deadline. All work for a client that has disconnected ends: then True."""
        upload = self._request.parsed.upload
        receive = receive if upload is None else upload.receive
        client = ClientDisconnect(receive, is_answered=lambda: self._out.ended)
        try:
            async with client:
                with self._keep_alive():
                    async with within(self._request.due):
                        await self._answer()
        except asyncio.CancelledError:  # the server stops, and the grace period is over
            raise ExpertUnavailable("the server is stopping") from None
        return client.happened

    def _keep_alive(self) -> AbstractContextManager[None]:
        """In a stream: send early headers if the first content is late, and a comment after each silent period."""
        if not self._request.is_streamed:
            return nullcontext()
        return KeepAlive(
            self._request.serving.keepalive_seconds,
            say=lambda: _keep_alive(self._out, self._request.service, self._decision),
            silent_since=lambda: self._out.said_at,
        )

    async def _answer(self) -> None:
        """Try the chosen expert and, after each failure before the answer begins, the next one in the ranking.

        A live expert that takes too long has not failed: another one would take long, too.
        """
        is_retry = False
        while True:
            try:
                await self._attempt(is_retry)
                return
            except _DiedAlone:
                is_retry = True  # no other expert can take the request: once more, to the restarted engine
            except _ChosenAgain as change:
                self._follow(change.decision)
            except HandsOver as change:
                self._may_choose_again = False  # a new decision would ignore the first expert's tokens
                self._follow(change.decision)
            except RefusesLogprobs:
                self._refused_logprobs = self._decision.expert
                self._turn_to(self._decision)
            except (EngineError, ExpertUnavailable, Overloaded) as error:
                self._fall_back(error)

    def _fall_back(self, error: CoeError) -> None:
        """Turn to another node or expert after a failure. Raises the error if none may answer."""
        if self._another_node_may_answer(error):
            _warn(self._decision, self._out, error)
            self._log.fell_back(error)
            return
        self._failures.note(self._decision.expert, error)
        is_final = self._out.spoken or not self._request.repeatable
        another = None if is_final else _another(self._request, self._decision, error)
        if another is None:
            raise error
        _warn(self._decision, self._out, error)
        self._log.fell_back(error)
        self._may_choose_again = False  # a new decision would ignore the failures
        self._follow(another)

    def _another_node_may_answer(self, error: CoeError) -> bool:
        """True after the failure of a node, if another one may have the same expert answer."""
        nodes = self._request.service.nodes
        is_final = self._out.spoken or not self._request.repeatable
        if nodes is None or is_final or isinstance(error, TooLongForExpert | EngineRefused):
            return False
        return may_go_on(nodes, self._decision.expert, self._tries)

    def _follow(self, decision: RoutingDecision) -> None:
        self._log.follows(decision)
        self._turn_to(decision)

    def _turn_to(self, decision: RoutingDecision) -> None:
        self._decision, self._waited = decision, {}
        self._tries = self._request.tries(decision)

    async def _attempt(self, is_retry: bool) -> None:
        """One attempt under one lease. The lease is released before an error is raised: a client that does not read its
        error must not hold a lease."""
        router = self._request.router
        with router.spending(self._decision) as spent, await self._lease() as lease:
            self._waited = wait_header(self._log.granted(self._decision.expert, lease.waited_seconds))
            self._failures.asks(lease)
            headers = decision_headers(self._decision) | self._waited
            attempt = Attempt(
                self._request,
                self._decision,
                lease,
                self._out,
                self._log,
                self._failures,
                spent,
                headers,
                self._decision.expert,
                self._tries,
            )
            may_retry = not is_retry and not self._decision.has_another
            try:
                await self._relay(attempt, may_retry)
            except EngineDied as error:
                if lease.mortal:
                    lease.suspect_engine()
                may_retry = may_retry and not self._out.spoken and self._request.repeatable
                if may_retry and await self._has_died(lease):
                    _warn(self._decision, self._out, error)
                    self._log.trace.lost(error)
                    raise _DiedAlone from error
                raise

    async def _has_died(self, lease: Lease) -> bool:
        return await lease.engine_is_gone(self._cache.limits.death_notice_seconds)

    async def _lease(self) -> Lease:
        """A lease on the chosen expert; if it is evicted during the wait, the choice is made once more."""
        name, request = self._decision.expert, self._request
        fan_out = request.parsed.fan_out
        asked = partial(_leased, self._cache, self._decision, request)
        here = self._may_choose_again and self._decision.ranking[0].residency == "device"
        if not here or self._cache.grants_at_once(name, fan_out):
            return await asked()
        waiting = asyncio.create_task(asked())
        leaving = asyncio.create_task(self._cache.slots[name].left.wait())
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self._may_choose_again = False
                again = request.decide()
                if again.expert != name:
                    raise _ChosenAgain(again)
            return await waiting
        except BaseException:
            await _given_up(waiting)
            raise
        finally:
            leaving.cancel()

    def _at_its_node(self, attempt: Attempt, answer: EngineResponse) -> Attempt:
        """The attempt with the headers of the node that answers, if a node does."""
        node = self._tries.node
        if node is None:
            return attempt
        self._waited = attempt_headers = node_headers(node, self._log.taken(node, answer.headers))
        return replace(attempt, headers=attempt.headers | attempt_headers)

    async def _relay(self, attempt: Attempt, may_retry: bool) -> None:
        """Relay the answer within the longest generation time, on which the wait bound of other requests depends."""
        lease, request = attempt.lease, self._request
        refused = self._refused_logprobs == attempt.expert
        judging = None if refused else Judging.of(request, self._decision)
        longest = asyncio.timeout(self._cache.limits.max_generation_seconds)
        try:
            asked = judging.members if judging is not None else NOTHING_ASKED
            sent = request.engine_request(attempt.expert, lease.expert, self._log.trace, self._tries, asked)
            async with longest, lease.engine.send(sent) as answer:
                may_retry = may_retry and request.repeatable
                attempt = self._at_its_node(attempt, answer)
                if answer.status >= 500 and may_retry and await self._has_died(lease):
                    raise EngineDied(f"expert '{attempt.expert}' answered with status {answer.status} and died")
                await relay(attempt, answer if judging is None else judging.held(attempt, answer))
                # and this is not its own refusal
                if answer.status < 400 and not self._failures.have_seen(attempt.expert):
                    lease.answered()
                    request.service.sessions.remember(request.session, self._decision)
                    self._is_answered = True
                    if refused:
                        request.serving.tellers.answered_without(attempt.expert)
        except TimeoutError as error:
            if not longest.expired():
                raise
            raise await attempt.timed_out() from error


class _DiedAlone(Exception):
    """The engine died before the first word, and no other expert can take the request."""


class _ChosenAgain(Exception):
    """Another expert is the better choice now."""

    def __init__(self, decision: RoutingDecision) -> None:
        super().__init__()
        self.decision = decision


def _warn(decision: RoutingDecision, out: Outgoing, error: CoeError) -> None:
    """Log an error with details that the caller must not get: addresses, messages of other servers."""
    if out.headed or isinstance(error, EngineError | UpstreamLimited):
        logger.warning("decision %s: %s", decision.decision_id, error)


async def _keep_alive(out: Outgoing, service: Service, decision: RoutingDecision) -> None:
    """The text of a comment about the expert's state."""
    if out.spoken:
        state = f"generating expert={decision.expert}"
    else:
        state = f"waiting expert={decision.expert} {_state(service, decision.expert)}"
    await out.wait(decision_headers(decision), state)


def _state(service: Service, name: str) -> str:
    """The expert's state and how long the wait still is: here, or at the best node."""
    if service.nodes is not None and service.is_on_nodes(name):
        there = service.nodes.best[name]
        return f"state={there.tier} eta={there.wait_seconds:.1f}"
    own = service.cache.slots[name].name
    expert = next((one for one in service.cache.status() if one.name == own), None)
    if expert is None:  # it was removed
        return "state=disk eta=0.0"
    return f"state={expert.state} eta={expert.predicted_wait_seconds:.1f}"


def _another(request: RoutedRequest, decision: RoutingDecision, error: CoeError) -> RoutingDecision | None:
    """The next expert in the ranking that can answer before the caller's deadline; None if there is none."""
    failed, why = decision.expert, f"failed: {first_line(str(error))}"
    while decision.has_another:
        decision = decision.without_first(why)
        if isinstance(error, TooLongForExpert) and not request.has_more_room(failed, decision.expert):
            why = f"takes no more tokens than expert '{failed}'"
        elif _can_come_in_time(request, decision.expert):
            return decision
        else:
            why = "the wait for it is longer than the caller's deadline allows"
    return None


def _can_come_in_time(request: RoutedRequest, expert: str) -> bool:
    if request.due is None:
        return True
    left_seconds = request.due - asyncio.get_running_loop().time()
    there = request.service.availability().get(expert)
    return there is not None and there.predicted_wait_seconds < left_seconds


async def _leased(cache: ExpertCache, decision: RoutingDecision, request: RoutedRequest) -> Lease:
    """A lease on the chosen expert. One that a reload removed meanwhile is unknown only to a caller who named it."""
    try:
        return await cache.lease(decision.expert, request.options.priority, request.parsed.fan_out, request.owner)
    except UnknownModel as error:
        if decision.reason == "requested":
            raise
        raise ExpertUnavailable(f"expert '{decision.expert}' was removed meanwhile", 1.0) from error


async def _given_up(waiting: asyncio.Task[Lease]) -> None:
    """Leave the queue; release a lease that was granted in that moment."""
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
