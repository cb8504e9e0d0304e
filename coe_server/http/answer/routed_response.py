"""The response that owns a lease: it waits for an expert, has its answer passed on, and gives the lease back.

A generator that never starts never cleans up; a response object is always called, so it holds the lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.queue import Lease, Owner, Priority
from coe_server.engines.engine import EngineRequest, EngineResponse
from coe_server.errors import (
    CoeError,
    EngineDied,
    EngineError,
    ExpertUnavailable,
    GenerationTimeout,
    Overloaded,
    TooLongForExpert,
    UpstreamLimited,
    first_line,
)
from coe_server.http.answer.account import Account
from coe_server.http.answer.deadline import by
from coe_server.http.answer.failures import Failures
from coe_server.http.answer.hang_up import HangUp
from coe_server.http.answer.headers import decision_headers, wait_header
from coe_server.http.answer.outgoing import Outgoing
from coe_server.http.answer.passing import Expectation, Listener, Passage, is_event_stream
from coe_server.http.answer.signs_of_life import SignsOfLife
from coe_server.http.answer.usage import Usage, UsageInBody, UsageInEvents, UsageReader
from coe_server.http.openai_errors import unexpected
from coe_server.routing.decision import RoutingDecision
from coe_server.verdict.complaint import Cause
from coe_server.verdict.verdict import Verdict

logger = logging.getLogger(__name__)

DEATH_NOTICE_SECONDS = 8.0  # vLLM's API process outlives a killed engine core by up to 7 s
_CHOSEN_BY_CALLER = frozenset(("requested", "sticky"))  # where an expert is changes nothing about these


@dataclass(frozen=True, slots=True)
class Errand:
    """One request to be answered, and whom to tell. `due` is the caller's own deadline, in the loop's time."""

    decision: RoutingDecision
    priority: Priority
    fan_out: int  # how many answers it asks for at once
    owner: Owner | None  # by what key, with its share of the queues
    is_streamed: bool
    keepalive_seconds: float
    due: float | None
    request_for: Callable[[str], EngineRequest]  # what goes to which expert
    decide_again: Callable[[], RoutingDecision]
    decided: Callable[[RoutingDecision], None]  # told of every decision that takes the place of `decision`
    took: Callable[[RoutingDecision, Usage], None]  # told what each expert's answer, or what there was of it, stated
    answered: Callable[[RoutingDecision], None]  # told of the one whose expert gave a whole answer
    spending: Callable[[RoutingDecision], AbstractContextManager[Callable[[], None]]]
    listener_for: Callable[[str], Listener] | None  # by expert: what its answer is heard by, piece by piece
    expects: Expectation
    has_more_room: Callable[[str, str], bool]  # may the second expert take what is too long for the first?


class RoutedResponse(Response):
    """Has an errand done; leaves the queue, or the engine, if the client does."""

    def __init__(self, cache: ExpertCache, errand: Errand, account: Account) -> None:
        self.background = None
        self._cache = cache
        self._errand = errand
        self._account = account
        self._failures = Failures(cache)
        self._decision = errand.decision
        self._may_choose_again = errand.decision.reason not in _CHOSEN_BY_CALLER
        self._waited: dict[str, str] = {}  # for the expert that is asked now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._out = Outgoing(scope, send)
        try:
            await self._answer_or_hang_up(receive)
        except CoeError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001  a mistake of ours; the caller may be in the middle of a stream
            await self._fail(unexpected(error))
        finally:
            self._failures.close()
            self._account.close()

    async def _fail(self, error: CoeError) -> None:
        self._log(error)
        self._account.failed(error, self._out.status or error.status)
        await self._out.fail(error, self._told())

    def _log(self, error: CoeError) -> None:
        """With what a caller is not told: addresses, others' words."""
        if self._out.headed or isinstance(error, EngineError | UpstreamLimited):
            logger.warning("decision %s: %s", self._decision.decision_id, error)

    def _told(self) -> dict[str, str]:
        """What there is to tell of the request by now."""
        return decision_headers(self._decision) | self._waited

    async def _answer_or_hang_up(self, receive: Receive) -> None:
        """Nothing goes on for a client that has left."""
        hang_up = HangUp(receive, is_answered=lambda: self._out.ended)
        try:
            async with hang_up:
                with self._signs_of_life():
                    await self._answer_in_time()
        except asyncio.CancelledError:  # the server stops and has waited long enough
            raise ExpertUnavailable("the server is stopping") from None
        if hang_up.happened:
            self._account.hung_up()

    async def _answer_in_time(self) -> None:
        """The answer, within the caller's own deadline."""
        if self._errand.due is None:
            await self._answer()
            return
        async with by(self._errand.due):
            await self._answer()

    async def _answer(self) -> None:
        """Ask the chosen expert, and while nothing of an answer is out, another one in the ranking after each failure.

        An expert that is alive and takes too long has not failed: another one would take its time, too.
        """
        is_retry = False
        while True:
            try:
                await self._attempt(is_retry)
                return
            except _DiedAlone:
                is_retry = True  # nobody else can take it: once more, to the restarted engine
            except _ChosenAgain as change:
                self._follow(change.decision)
            except (EngineError, ExpertUnavailable, Overloaded) as error:
                self._failures.note(self._decision.expert, error)
                another = None if self._out.spoken else self._another(error)
                if another is None:
                    raise
                self._log(error)
                self._account.fell_back(error)
                self._may_choose_again = False  # a new decision would know nothing of those that have failed
                self._follow(another)

    def _another(self, error: CoeError) -> RoutingDecision | None:
        """The next in the ranking of whom an answer may come before the caller's deadline; None if nobody is left."""
        failed, decision, why = self._decision.expert, self._decision, f"failed: {first_line(str(error))}"
        while decision.has_another:
            decision = decision.without_first(why)
            if isinstance(error, TooLongForExpert) and not self._errand.has_more_room(failed, decision.expert):
                why = f"takes no more tokens than expert '{failed}'"
            elif self._may_come_in_time(decision.expert):
                return decision
            else:
                why = "the wait for it is longer than the caller's deadline allows"
        return None

    def _could_take_it(self, verdict: Verdict) -> bool:
        """Whether another expert in the ranking may still answer after this failure of the one that was asked."""
        if self._out.spoken:
            return False
        others = (one.expert for one in self._decision.ranking[1:] if one.excluded is None)
        if verdict.cause is not Cause.CONTEXT:
            return any(True for _ in others)
        return any(self._errand.has_more_room(self._decision.expert, other) for other in others)

    def _may_come_in_time(self, expert: str) -> bool:
        if self._errand.due is None:
            return True
        left_seconds = self._errand.due - asyncio.get_running_loop().time()
        return self._cache.waits.predicted_seconds(expert) < left_seconds

    def _follow(self, decision: RoutingDecision) -> None:
        self._decision, self._waited = decision, {}
        self._account.follows(decision)
        self._errand.decided(decision)

    async def _attempt(self, is_retry: bool) -> None:
        """One expert, one lease. When it raises, the lease is given back already: who does not read holds nothing."""
        with self._errand.spending(self._decision) as spent, await self._lease() as lease:
            self._waited = wait_header(self._account.granted(lease.expert, lease.waited_seconds))
            self._failures.asks(lease)
            may_retry = not is_retry and not self._decision.has_another
            try:
                if await self._carry(lease, spent, may_retry):
                    lease.answered()
                    self._errand.answered(self._decision)
            except EngineDied as error:
                if lease.mortal:
                    lease.suspect_engine()
                if may_retry and not self._out.spoken and await lease.engine_is_gone(DEATH_NOTICE_SECONDS):
                    self._log(error)
                    self._account.retried(error)
                    raise _DiedAlone from error
                raise

    async def _lease(self) -> Lease:
        """A lease of the chosen expert; if it leaves the device while we wait, the choice is made once more."""
        name, errand = self._decision.expert, self._errand
        asked = partial(self._cache.lease, name, errand.priority, errand.fan_out, errand.owner)
        here = self._may_choose_again and self._decision.ranking[0].residency == "device"
        if not here or self._cache.grants_at_once(name, errand.fan_out):
            return await asked()
        waiting = asyncio.create_task(asked())
        leaving = asyncio.create_task(self._cache.slots[name].left.wait())
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self._may_choose_again = False
                again = self._errand.decide_again()
                if again.expert != name:
                    raise _ChosenAgain(again)
            return await waiting
        except BaseException:
            await _given_up(waiting)
            raise
        finally:
            leaving.cancel()

    async def _carry(self, lease: Lease, spent: Callable[[], None], may_retry: bool) -> bool:
        """Pass the answer on, ended when it takes longer than one may: the wait bound of all others rests on it.

        Tells whether it was one, and not an expert's own refusal.
        """
        longest = asyncio.timeout(self._cache.limits.max_generation_seconds)
        try:
            async with longest, lease.engine.send(self._errand.request_for(lease.expert)) as answer:
                if answer.status >= 500 and may_retry and await lease.engine_is_gone(DEATH_NOTICE_SECONDS):
                    raise EngineDied(f"expert '{lease.expert}' answered with status {answer.status} and died")
                await self._pass_on(answer, lease, spent)
                return answer.status < 400 and not self._failures.have_seen(lease.expert)
        except TimeoutError as error:
            if not longest.expired():
                raise
            raise await self._took_too_long(lease) from error

    async def _pass_on(self, answer: EngineResponse, lease: Lease, spent: Callable[[], None]) -> None:
        """Byte for byte, while what counts its tokens listens."""

        def begun(status: int) -> None:
            self._account.first_bytes(status, self._out.status or status, self._errand.is_streamed)
            if status < 400:
                self._failures.settle()
                spent()
                if not self._failures.have_seen(expert):
                    lease.speaks()

        def failed(error: CoeError) -> None:
            self._failures.note(expert, error)

        expert, expects = lease.expert, self._errand.expects
        usage: UsageReader = UsageInEvents() if is_event_stream(answer) else UsageInBody()
        listener_for = self._errand.listener_for
        listeners = (usage.hear,) if listener_for is None else (usage.hear, listener_for(expert))
        passage = Passage(
            expert, self._out, self._told(), begun, expects, self._could_take_it, failed, not lease.mortal, listeners
        )
        try:
            await passage.carry(answer)
        finally:  # of an answer that broke off, what it said before
            stated = usage.usage()
            self._account.used(stated)
            self._errand.took(self._decision, stated)

    async def _took_too_long(self, lease: Lease) -> CoeError:
        """The engine is looked after in any case; what it says is waited for where another one could be asked."""
        told = f"the answer took longer than {self._cache.limits.max_generation_seconds:g} s"
        if self._out.spoken or not self._decision.has_another:
            lease.suspect_engine()
        elif not await lease.engine_is_alive():
            error = EngineError(f"expert '{lease.expert}' is frozen: {told}, and it gives no sign of life")
            error.backs_off = "never"  # what looked after it has counted that
            return error
        return GenerationTimeout(f"{told} (scheduling.max_generation_seconds)")

    def _signs_of_life(self) -> AbstractContextManager[None]:
        """The headers once the first word has taken long; a comment whenever nothing was said for so long."""
        if not self._errand.is_streamed:
            return nullcontext()
        return SignsOfLife(
            self._errand.keepalive_seconds,
            say=lambda: self._out.wait(decision_headers(self._decision), self._state()),
            silent_since=lambda: self._out.said_at,
        )

    def _state(self) -> str:
        if self._out.spoken:
            return f"generating expert={self._decision.expert}"
        expert = next(one for one in self._cache.status() if one.name == self._decision.expert)
        return f"waiting expert={expert.name} state={expert.state} eta={expert.predicted_wait_seconds:.1f}"


class _DiedAlone(Exception):
    """The engine died before the first word, and no other expert can take the request."""


class _ChosenAgain(Exception):
    """Another expert is the better choice now."""

    def __init__(self, decision: RoutingDecision) -> None:
        super().__init__()
        self.decision = decision


async def _given_up(waiting: asyncio.Task[Lease]) -> None:
    """Leave the queue; a lease that was granted in that moment is given back."""
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()
