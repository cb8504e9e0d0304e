"""An expert on nodes, as the front's engine: sends each request to the best node, and to the next if that fails.

The answer streams straight through. A request that may have been paid for is never sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from coe_server.cluster.choice import engine_of
from coe_server.cluster.link import NodeError, NodeLink, error_of
from coe_server.cluster.nodes import Nodes
from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint, Seat, Tries
from coe_server.errors import CoeError, EngineError, EngineUnreachable, ExpertUnavailable, Overloaded
from coe_server.upstream.reply import retry_after_seconds

_REFUSALS = frozenset((401, 403, 404, 429, 502, 503))
# Codes of a node that has not sent the request to any engine.
_UNSENT = frozenset(("queue_full", "bodies_full", "expert_unavailable", "rate_limit_exceeded", "invalid_api_key"))
_LONGEST_REFUSAL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class AnswerOfNode:
    """An `EngineResponse` of the node `node`."""

    node: str
    answer: EngineResponse

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return self.answer.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self.answer.chunks()


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    error: NodeError
    retry_seconds: float


class OnNodes:
    """An `Engine` (see `engine.py`) without a process here: nodes move it, so moves do nothing."""

    def __init__(self, expert: str, nodes: Nodes) -> None:
        self._expert = expert
        self._nodes = nodes

    @property
    def footprint(self) -> Footprint:
        return Footprint(device_awake=0)

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        """Nothing to do."""

    async def sleep(self) -> None:
        """Nothing to do."""

    async def wake(self) -> None:
        """Nothing to do."""

    async def stop(self, at_once: bool = False) -> None:
        """Nothing to do: the connections belong to the nodes."""

    async def died(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("this event is never set")

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        """Send it to the best node that takes it. Raises Overloaded, ExpertUnavailable or EngineDied if none does."""
        tries = request.tries or Tries()
        tries.node = None
        async with AsyncExitStack() as held:
            answer = await self._taken(request, tries, held)
            tries.node = answer.node
            self._nodes.answered(answer.node, tries)
            yield answer

    async def _taken(self, request: EngineRequest, tries: Tries, held: AsyncExitStack) -> AnswerOfNode:
        refusals: list[_Refusal] = []
        death: EngineError | None = None
        for link in self._nodes.ranked(self._expert, tries) if not tries.is_spent else ():
            attempt = AsyncExitStack()
            try:
                answer = await attempt.enter_async_context(self._asked(link, request, tries))
                refusal = await _refusal(answer)
            except EngineError as error:
                await attempt.aclose()
                self._failed(link, "died", tries)
                death = error
                if self._is_spent(link) and not isinstance(error, EngineUnreachable):
                    tries.is_spent = True
                    break
                continue
            except BaseException:
                await attempt.aclose()
                raise
            if refusal is None:
                self._nodes.outcomes[link.name, "answered"] += 1
                await held.enter_async_context(attempt)
                return AnswerOfNode(link.name, answer)
            await attempt.aclose()
            if refusal.status in {401, 403}:
                link.refuse(f"it refused a request of this front ({refusal.status}): {refusal.error.message}")
            self._failed(link, "refused", tries)
            refusals.append(refusal)
            if self._is_spent(link) and refusal.error.code not in _UNSENT:
                tries.is_spent = True
                break
        raise self._none_took_it(refusals, death)

    def _asked(
        self, link: NodeLink, request: EngineRequest, tries: Tries
    ) -> AbstractAsyncContextManager[EngineResponse]:
        return _sending(self._nodes, link, self._expert, request, tries)

    def _failed(self, link: NodeLink, outcome: str, tries: Tries) -> None:
        self._nodes.outcomes[link.name, outcome] += 1
        tries.failed.add(link.name)

    def _is_spent(self, link: NodeLink) -> bool:
        """True if what was sent to that node may have been paid for."""
        found = link.snapshot.experts.get(self._expert) if link.snapshot is not None else None
        return found is not None and found.may_have_been_paid

    def _none_took_it(self, refusals: list[_Refusal], death: EngineError | None) -> CoeError:
        busy = [one for one in refusals if one.status == 429]
        if busy:
            soonest = min(busy, key=lambda one: one.retry_seconds)
            return Overloaded(f"no node takes the request now: {soonest.error.message}", soonest.retry_seconds)
        if refusals:
            soonest = min(refusals, key=lambda one: one.retry_seconds)
            return ExpertUnavailable(f"no node can answer now: {soonest.error.message}", soonest.retry_seconds)
        if death is not None:
            return death
        best = self._nodes.best(self._expert)
        why = best.unavailable or "every node that has it failed at this request"
        return ExpertUnavailable(f"expert '{self._expert}': {why}", best.returns_seconds or 1.0)


@asynccontextmanager
async def _sending(
    nodes: Nodes, link: NodeLink, expert: str, request: EngineRequest, tries: Tries
) -> AsyncIterator[EngineResponse]:
    headers = (*request.headers, *link.access.headers)
    sent = EngineRequest(request.method, request.path, headers, request.body)
    there = link.snapshot.experts.get(expert) if link.snapshot is not None else None
    counted = engine_of(there) if there is not None else expert
    with nodes.sent.sending(link.name, counted, tries.answers):
        async with link.channel.send(sent) as answer:
            yield answer


async def _refusal(answer: EngineResponse) -> _Refusal | None:
    """Why a node does not take a request that another one may take; None for an answer, also for the caller's error."""
    if answer.status not in _REFUSALS:
        return None
    body = bytearray()
    async for chunk in answer.chunks():
        body += chunk[: _LONGEST_REFUSAL_BYTES - len(body)]
    asked = next((value for name, value in answer.headers if name.lower() == "retry-after"), None)
    return _Refusal(answer.status, error_of(bytes(body)), retry_after_seconds(asked, datetime.now(UTC)) or 1.0)
