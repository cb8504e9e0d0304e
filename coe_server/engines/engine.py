"""The seam between the cache and one expert's process. Knows nothing of the other experts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Seat = tuple[int, ...]  # the cards of one process, by index; as long as the expert is wide


class Footprint(NamedTuple):
    """Bytes one expert needs in each tier: on the device those on each of its cards, in host memory those of all.

    `host_image` is 0 for an engine that cannot sleep: it is on the device or on disk, never in between.
    """

    device_awake: int  # weights + KV cache
    device_asleep: int = 0  # what stays on the device while the engine sleeps
    host_process: int = 0  # fixed cost of the living process
    host_image: int = 0  # the write-once copy of the weights

    @property
    def can_sleep(self) -> bool:
        return self.host_image > 0

    @property
    def host(self) -> int:
        """Bytes in host memory while the process runs, awake or asleep."""
        return self.host_process + self.host_image


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One HTTP request for an engine; `path` is absolute, e.g. `/v1/chat/completions`.

    `body` is in pieces where it is so large that copying it would delay other requests.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | tuple[bytes | memoryview, ...]

    @property
    def whole_body(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else b"".join(self.body)


class EngineResponse(Protocol):
    """An answer: its headers have arrived, its body is still streaming."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """End-to-end headers only, without hop-by-hop ones."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; raises `EngineDied` if the connection breaks before its end."""


class TellsLength(Protocol):
    """An engine that tells how long a request may be, which may be less than was asked for: vLLM fits it to memory."""

    @property
    def longest_tokens(self) -> int | None:
        """Tokens of a request with its answer, as the engine told when it started; None before its first start."""


class Engine(Protocol):
    """One expert's engine. Its owner makes one of start, sleep, wake, stop at a time; `send` may overlap itself."""

    @property
    def footprint(self) -> Footprint:
        """An estimate before the first start, too large rather than too small; measured afterwards."""

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        """Start a process on the cards of `seat` and load the weights, until it answers; within its own time limit and
        `within_seconds`.

        Raises `EngineStartFailed`; then nothing is left behind. After the process died, a start without a stop in
        between may use the image that it left.
        """

    async def sleep(self) -> None:
        """Leave the device. Returns when its memory is measured as free; raises `EngineError` if it stays in use."""

    async def wake(self) -> None:
        """Load the weights from host memory again and check a canary. Raises `EngineError` if the answer is wrong."""

    async def stop(self, at_once: bool = False) -> None:
        """No process and no memory is left, whatever the state before. Never raises; calling it twice is fine.

        `at_once`: after a failure or a start that was given up; the process gets hardly any time to end by itself.
        """

    async def died(self) -> str:
        """Wait until the process ends or hangs without being asked to. Returns the reason with the last log lines.

        Its image stays in host memory, as the footprint says, until `stop` or the next start.
        """

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        """Send one request. Raises `EngineDied` if it cannot be delivered. Leaving the context aborts it."""
