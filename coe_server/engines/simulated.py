"""An engine without a model or process that keeps configured times, for load and fault tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import Field

from coe_server.config.types import ByteCount
from coe_server.engines.engine import Engine, EngineRequest, EngineResponse, Footprint, Seat
from coe_server.engines.settings import ExpertSettings, Surroundings
from coe_server.engines.simulated_answers import Script, script
from coe_server.errors import EngineDied, EngineStartFailed


class SimulatedExpert(ExpertSettings):
    engine: Literal["simulated"]
    weights_bytes: ByteCount = 15 * 2**30  # on all of its cards together
    width: int = Field(default=1, ge=1)
    start_seconds: float = Field(default=40.0, ge=0)
    wake_seconds: float = Field(default=0.4, ge=0)
    sleep_seconds: float = Field(default=0.3, ge=0)
    ttft_seconds: float = Field(default=0.05, ge=0)
    tokens_per_second: float = Field(default=50.0, gt=0)

    def build(self, surroundings: Surroundings) -> Engine:
        return SimulatedEngine(self.name, weights_bytes=self.weights_bytes, width=self.width, **self.timings)

    @property
    def cards_taken(self) -> int:
        return self.width

    @property
    def timings(self) -> Mapping[str, Any]:
        return {
            "start_seconds": self.start_seconds,
            "wake_seconds": self.wake_seconds,
            "sleep_seconds": self.sleep_seconds,
            "ttft_seconds": self.ttft_seconds,
            "tokens_per_second": self.tokens_per_second,
        }


class SimulatedEngine:
    """An `Engine` (see `engine.py`) that answers with its name and the last user message, at the configured speed."""

    def __init__(
        self,
        name: str,
        *,
        weights_bytes: int,
        start_seconds: float,
        wake_seconds: float,
        sleep_seconds: float,
        ttft_seconds: float,
        tokens_per_second: float,
        width: int = 1,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.footprint = Footprint(device_awake=-(-weights_bytes // width), host_image=weights_bytes)
        self._name = name
        self._start_seconds = start_seconds
        self._wake_seconds = wake_seconds
        self._sleep_seconds = sleep_seconds
        self._ttft_seconds = ttft_seconds
        self._seconds_per_token = 1 / tokens_per_second
        self._pause = pause
        self._running = False
        self._awake = asyncio.Event()
        self._died = asyncio.Event()
        self._death = ""

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        if within_seconds is not None and within_seconds < self._start_seconds:
            await self._pause(within_seconds)
            raise EngineStartFailed(f"engine '{self._name}' was not up within {within_seconds:g} s")
        await self._pause(self._start_seconds)
        self._running = True
        self._died.clear()
        self._awake.set()

    async def sleep(self) -> None:
        self._require_life()
        self._awake.clear()
        await self._pause(self._sleep_seconds)

    async def wake(self) -> None:
        self._require_life()
        await self._pause(self._wake_seconds)
        self._awake.set()

    async def stop(self, at_once: bool = False) -> None:
        self._running = False
        self._awake.clear()

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    def kill(self, reason: str) -> None:
        """Behave like an engine after SIGKILL: streams break off."""
        self._running = False
        self._death = f"engine '{self._name}' {reason}"
        self._awake.set()  # then waiting requests fail
        self._died.set()

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        self._require_life()
        await self._awake.wait()  # as vLLM does: a request to a sleeping engine waits
        self._require_life()
        path = request.path if request.method == "POST" else f"{request.method} {request.path}"
        played = script(self._name, path, await _read(request), int(time.time()))
        yield _SimulatedResponse(played.status, played.content_type, self._play(played))

    async def _play(self, played: Script) -> AsyncIterator[bytes]:
        """The opening at once, then the tokens at the configured speed."""
        for chunk in played.opening:
            yield chunk
        for position, piece in enumerate(played.pieces):
            await self._pause(self._seconds_per_token if position else self._ttft_seconds)
            self._require_life()
            if piece:
                yield piece
        for chunk in played.closing:
            yield chunk

    def _require_life(self) -> None:
        if not self._running:
            raise EngineDied(self._death or f"engine '{self._name}' is not running")


async def _read(request: EngineRequest) -> bytes:
    """The body; of a form only its size, as a JSON object."""
    if isinstance(request.body, bytes | tuple):
        return request.whole_body
    size_bytes = 0
    async for piece in request.body.pieces():
        size_bytes += len(piece)
    return b'{"form_bytes": %d}' % size_bytes


class _SimulatedResponse:
    """An `EngineResponse` made here."""

    def __init__(self, status: int, content_type: str, body: AsyncIterator[bytes]) -> None:
        self.status = status
        self.headers = (("content-type", content_type),)
        self._body = body

    def chunks(self) -> AsyncIterator[bytes]:
        return self._body
