"""The response that owns a lease: it waits for the expert, streams the answer through, and gives the lease back.

A generator that never starts never cleans up; a response object is always called, so it holds the lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.lease import Lease
from coe_server.cache.queue import Priority
from coe_server.engines.engine import EngineRequest, EngineResponse
from coe_server.errors import CoeError, EngineDied, EngineError, ExpertUnavailable, GenerationTimeout
from coe_server.http.account import Account
from coe_server.http.openai_errors import error_event, error_response

logger = logging.getLogger(__name__)

ATTEMPTS = 2  # a request that met a dead engine before its first byte is sent once more, to the restarted one
LAST_WORDS_SECONDS = 5.0  # for telling a client that may not be reading
DEATH_NOTICE_SECONDS = 8.0  # vLLM's API process outlives a killed engine core by up to 7 s


class RoutedResponse(Response):
    """Sends `request` to `expert` as soon as the cache grants a lease; leaves the queue if the client does.

    `spending` is told when the expert begins to answer: from then on the answer costs what it costs.
    """

    def __init__(
        self,
        cache: ExpertCache,
        expert: str,
        priority: Priority,
        request: EngineRequest,
        headers: Callable[[Lease], dict[str, str]],
        spending: AbstractContextManager[Callable[[], None]],
        account: Account,
    ) -> None:
        self.background = None
        self._cache = cache
        self._expert = expert
        self._priority = priority
        self._request = request
        self._headers_for = headers
        self._spending = spending
        self._account = account
        self._started = False
        self._is_event_stream = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        try:
            with self._spending as self._answered:
                await self._answer_or_hang_up(receive, send)
        except CoeError as error:  # before the first byte: afterwards there is no way to say it with a status
            self._account.failed(error)
            await error_response(error)(scope, receive, send)
        finally:
            self._account.close()

    async def _answer_or_hang_up(self, receive: Receive, send: Send) -> None:
        answer = asyncio.create_task(self._answer(send))
        hang_up = asyncio.create_task(_hang_up(receive))
        try:
            await asyncio.wait((answer, hang_up), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server stops and has waited long enough
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            await self._end_unfinished(ExpertUnavailable("the server is stopping"), send)
            return
        finally:
            hang_up.cancel()
            answer.cancel()  # does nothing to an answer that is complete
            await asyncio.gather(answer, hang_up, return_exceptions=True)
        if answer.cancelled():
            self._account.hung_up()
        else:
            answer.result()

    async def _answer(self, send: Send) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            with await self._cache.lease(self._expert, self._priority) as lease:
                self._account.granted(lease.expert, lease.waited_seconds)
                try:
                    if await self._in_time(lease, send, last=attempt == ATTEMPTS):
                        lease.answered()
                        return
                except EngineError as error:
                    if not self._started and (attempt == ATTEMPTS or not await self._worth_another_try(error, lease)):
                        raise
                    broken = error
            if self._started:  # the lease is given back already: who does not read holds nothing
                await self._end_unfinished(broken, send)
                return

    async def _in_time(self, lease: Lease, send: Send, last: bool) -> bool:
        """`_pass_through`, ended when it takes longer than one answer may: the wait bound of all others rests on it."""
        longest = self._cache.limits.max_generation_seconds
        try:
            async with asyncio.timeout(longest):
                return await self._pass_through(lease, send, last)
        except TimeoutError as error:
            lease.suspect_engine()
            raise GenerationTimeout(
                f"the answer took longer than {longest:g} s (scheduling.max_generation_seconds)"
            ) from error

    async def _worth_another_try(self, error: EngineError, lease: Lease) -> bool:
        return isinstance(error, EngineDied) and await lease.engine_is_gone(DEATH_NOTICE_SECONDS)

    async def _pass_through(self, lease: Lease, send: Send, last: bool) -> bool:
        """Stream the engine's answer to the client; False if the engine turned out to be dead before its first byte."""
        async with lease.engine.send(self._request) as answer:
            if answer.status >= 500 and not last and await lease.engine_is_gone(DEATH_NOTICE_SECONDS):
                return False
            async for chunk in answer.chunks():
                await self._begin(answer, lease, send)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await self._begin(answer, lease, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    async def _begin(self, answer: EngineResponse, lease: Lease, send: Send) -> None:
        """The head goes out with the first byte of the body: until then another try is possible."""
        if not self._started:
            await send(self._head(answer, lease))
            self._started = True
            self._account.first_bytes(answer.status, self._is_event_stream)
            if answer.status < 400:
                self._answered()

    def _head(self, answer: EngineResponse, lease: Lease) -> Message:
        passed_on = [(name, value) for name, value in answer.headers if not _is_ours(name.lower())]
        headers = passed_on + list(self._headers_for(lease).items())
        self._is_event_stream = any(
            name.lower() == "content-type" and value.startswith("text/event-stream") for name, value in passed_on
        )
        return {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }

    async def _end_unfinished(self, error: CoeError, send: Send) -> None:
        """Say why in an event stream; any other body stays incomplete, so that it cannot be taken for whole."""
        if not self._started:
            await error_response(error)(self._scope, _nobody, send)
            return
        logger.warning("%s", error)
        self._account.failed(error)
        if self._is_event_stream:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await send({"type": "http.response.body", "body": error_event(error), "more_body": False})


async def _nobody() -> Message:
    return {"type": "http.disconnect"}


async def _hang_up(receive: Receive) -> None:
    """Returns when the client is gone; the body has been read already."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_ours(header: str) -> bool:
    """uvicorn's headers and our own are not an engine's to write; its cookies are nobody's business."""
    return header in {"date", "server", "set-cookie"} or header.startswith("x-coe-")
