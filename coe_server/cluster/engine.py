"""An expert on nodes, as the front's engine: sends each request to the best node, and to the next if that fails.

The answer streams straight through. A request that may have been paid for is never sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from coe_server.cluster.choice import choose, engine_of
from coe_server.cluster.connections import NodeError, Pending, error_of
from coe_server.cluster.link import NodeLink
from coe_server.cluster.nodes import Nodes
from coe_server.engines.engine import EngineRequest, EngineResponse, Tries, WithoutProcess
from coe_server.errors import CoeError, EngineDied, EngineError, EngineUnreachable, ExpertUnavailable, Overloaded
from coe_server.upstream.reply import retry_after_seconds

_REFUSALS = frozenset((401, 403, 404, 429, 502, 503))
# Codes of a node that has not sent the request to any engine.
_UNSENT = frozenset(("queue_full", "bodies_full", "expert_unavailable", "rate_limit_exceeded", "invalid_api_key"))
_NOT_LET_IN = frozenset(("invalid_api_key", "forbidden"))
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

    @property
    def told(self) -> CoeError:
        """The error for the caller."""
        if self.status == 429:
            return Overloaded(f"no node takes the request now: {self.error.message}", self.retry_seconds)
        return ExpertUnavailable(f"no node can answer now: {self.error.message}", self.retry_seconds)


class OnNodes(WithoutProcess):
    """An `Engine` (see `engine.py`) of a front: nodes move the expert, and connections belong to them."""

    def __init__(self, expert: str, nodes: Nodes) -> None:
        self._expert = expert
        self._nodes = nodes

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        """Send it to the best node that takes it. Raises Overloaded, ExpertUnavailable or EngineDied if none does."""
        tries = request.tries or Tries()
        tries.node = None
        async with AsyncExitStack() as held:
            answer = await self._taken(request, tries, held)
            tries.node = answer.node
            self._nodes.sent.answered(answer.node, tries.session)
            yield answer

    async def _taken(self, request: EngineRequest, tries: Tries, held: AsyncExitStack) -> AnswerOfNode:
        """The answer of the first node that gives one. Raises the error that tells most."""
        failures: list[CoeError] = []
        for link in _ranked(self._nodes, self._expert, tries) if not tries.is_spent else ():
            found = await self._asked(link, request, tries, held)
            if isinstance(found, AnswerOfNode):
                return found
            failures.append(found)
            if tries.is_spent:
                break
            if not isinstance(
                request.body, bytes | tuple
            ):  # its bytes have gone; the next attempt may bring them again
                tries.node = link.name
                break
        raise _most_telling(failures) or self._absence()

    async def _asked(
        self, link: NodeLink, request: EngineRequest, tries: Tries, held: AsyncExitStack
    ) -> AnswerOfNode | CoeError:
        """One node's answer, open in `held`; or why there is none."""
        try:
            async with AsyncExitStack() as attempt:
                answer = await attempt.enter_async_context(_sending(self._nodes, link, self._expert, request, tries))
                refusal = await _refusal(answer)
                if refusal is None:
                    self._nodes.sent.outcomes[link.name, "answered"] += 1
                    await held.enter_async_context(attempt.pop_all())
                    return AnswerOfNode(link.name, answer)
        except EngineError as error:
            self._failed(link, "died", tries, may_have_begun=not isinstance(error, EngineUnreachable))
            return error
        if refusal.error.code in _NOT_LET_IN:
            link.refuse(f"it refused a request of this front ({refusal.status}): {refusal.error.message}")
        self._failed(link, "refused", tries, may_have_begun=refusal.error.code not in _UNSENT)
        return refusal.told

    def _failed(self, link: NodeLink, outcome: str, tries: Tries, may_have_begun: bool) -> None:
        self._nodes.sent.outcomes[link.name, outcome] += 1
        tries.failed.add(link.name)
        there = link.liveness.expert(self._expert)
        if may_have_begun and there is not None and there.may_have_been_paid:
            tries.is_spent = True

    def _absence(self) -> ExpertUnavailable:
        best = self._nodes.best[self._expert]
        why = best.unavailable or "every node that has it failed at this request"
        return ExpertUnavailable(f"expert '{self._expert}': {why}", best.returns_seconds or 1.0)


def _ranked(nodes: Nodes, expert: str, tries: Tries) -> Iterator[NodeLink]:
    """The nodes to try, best first, without those that failed this request; looked at anew after each."""
    while True:
        left = [one for one in nodes.usable() if one.node not in tries.failed]
        names = choose(expert, left, nodes.sent, nodes.sent.node_of(tries.session), answers=tries.answers)
        if not names:
            return
        yield nodes.link(names[0])
        assert names[0] in tries.failed, "a node that was tried in vain is not tried again"


def may_go_on(nodes: Nodes, expert: str, tries: Tries) -> bool:
    """True if another node may answer, after the one that had begun failed before its first word.

    Never where the request may have been paid for.
    """
    if tries.node is None or tries.is_spent:
        return False
    found = next((one.expert(expert) for one in nodes.known() if one.name == tries.node), None)
    if tries.node not in tries.failed:
        nodes.sent.outcomes[tries.node, "died"] += 1
        tries.failed.add(tries.node)
    tries.node, tries.is_spent = None, found is None or found.may_have_been_paid
    return not tries.is_spent


def _most_telling(failures: list[CoeError]) -> CoeError | None:
    """Of a full node, then of one that cannot answer now, the one that asks for the least patience; else the last."""
    for kind in (Overloaded, ExpertUnavailable):
        found = [one for one in failures if isinstance(one, kind)]
        if found:
            return min(found, key=lambda one: one.retry_after_seconds or 0.0)
    return failures[-1] if failures else None


@asynccontextmanager
async def _sending(
    nodes: Nodes, link: NodeLink, expert: str, request: EngineRequest, tries: Tries
) -> AsyncIterator[EngineResponse]:
    headers = (*request.headers, *link.connections.access.headers)
    sent = EngineRequest(request.method, request.path, headers, request.body)
    there = link.liveness.expert(expert)
    counted = engine_of(there) if there is not None else expert
    try:
        async with asyncio.timeout(None) as limit:
            pending = Pending(expert, tries, limit)
            with nodes.sent.sending(link.name, counted, tries.answers), link.connections.holds(pending):
                async with link.connections.channel.send(sent) as answer:
                    yield answer
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise EngineDied(f"node '{link.name}' is silent\n{link.address.url}") from error


async def _refusal(answer: EngineResponse) -> _Refusal | None:
    """Why a node does not take a request that another one may take; None for an answer, also for the caller's error."""
    if answer.status not in _REFUSALS:
        return None
    body = bytearray()
    async for chunk in answer.chunks():
        body += chunk[: _LONGEST_REFUSAL_BYTES - len(body)]
    asked = next((value for name, value in answer.headers if name.lower() == "retry-after"), None)
    return _Refusal(answer.status, error_of(bytes(body)), retry_after_seconds(asked, datetime.now(UTC)) or 1.0)
