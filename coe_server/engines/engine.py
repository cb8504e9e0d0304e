"""The interface between the cache and one expert's process. Independent of other experts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from coe_server.errors import CoeError

Seat = tuple[int, ...]  # card indices of one process; its length is the expert's width


class Footprint(NamedTuple):
    """Bytes that one expert needs: device bytes on each of its cards, host bytes in total.

    `host_image` is 0 for an engine that cannot sleep: it is on the device or on disk, never in host memory.
    """

    device_awake: int  # weights + KV cache
    device_asleep: int = 0  # kept on the device during sleep
    host_process: int = 0  # fixed cost of the running process
    host_image: int = 0  # the write-once copy of the weights

    @property
    def can_sleep(self) -> bool:
        return self.host_image > 0

    @property
    def host(self) -> int:
        """Bytes in host memory while the process runs, awake or asleep."""
        return self.host_process + self.host_image


class StreamedBody(Protocol):
    """A body that is not in memory: it comes from the client or from disk while it is sent."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def failure(self) -> CoeError | None:
        """Why `pieces` ended early: the client's fault, not the engine's."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The bytes, as they are there to be sent. Raises `failure`."""


@dataclass(slots=True)
class Tries:
    """Where a request to one expert on several machines has been; kept over its attempts.

    `session` identifies the conversation. `node` is the machine that answers, None before. `failed`: the machines that
    failed it, which are not asked again. `is_spent`: it may have been paid for, so it is not sent again. `has_begun`: a
    part of the answer goes to the caller, so no other machine can answer. `has_substitute`: another expert may answer.
    """

    session: bytes | None = None
    answers: int = 1
    node: str | None = None
    failed: set[str] = field(default_factory=set)
    is_spent: bool = False
    has_begun: bool = False
    has_substitute: bool = False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One HTTP request for an engine; `path` is absolute, e.g. `/v1/chat/completions`.

    `body` is in pieces if it is so large that copying it would delay other requests.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | tuple[bytes | memoryview, ...] | StreamedBody
    tries: Tries | None = None  # for an engine that has several machines to choose from
    model: str = ""  # that the body asks for, for an engine that answers under several names

    @property
    def whole_body(self) -> bytes:
        """A body that is in memory, in one piece."""
        assert isinstance(self.body, bytes | tuple), "a streamed body is never in one piece"
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


@runtime_checkable
class HasLog(Protocol):
    """An engine whose process writes a log here."""

    def log_end(self, count: int) -> list[str]:
        """The last lines, bounded in bytes, without known secrets and what looks like a prompt. Reads a file."""


class Download(NamedTuple):
    """An unfinished download of a model, in bytes; `of` is None if the whole is not known."""

    done: int
    of: int | None


@runtime_checkable
class TellsDownload(Protocol):
    """An engine whose model may come from a hub: with `coe pull`, or when it starts."""

    def download(self) -> Download | None:
        """None if nothing is unfinished. Reads a folder."""


class Engine(Protocol):
    """One expert's engine. Its owner calls start, sleep, wake and stop one at a time; `send` may run concurrently."""

    @property
    def footprint(self) -> Footprint:
        """Measured; before the first start an estimate, rather too large than too small."""

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        """Start a process on the cards of `seat`, load the weights, and wait until it answers.

        Time limits: its own and `within_seconds`. Raises `EngineStartFailed` and leaves nothing behind. If the
        process died and `stop` was not called, the new one may load from the image of the dead one.
        """

    async def sleep(self) -> None:
        """Leave the device; returns when its memory is measured as free. Raises `EngineError` if it stays in use."""

    async def wake(self) -> None:
        """Load the weights from host memory and check a canary. Raises `EngineError` if its answer is wrong."""

    async def stop(self, at_once: bool = False) -> None:
        """End the process and free its memory, in any state. Never raises; may be called repeatedly.

        `at_once`: with hardly any grace period, after a failure or a cancelled start.
        """

    async def died(self) -> str:
        """Wait until the process ends unexpectedly or hangs. Returns the reason with the last log lines.

        Its image stays in host memory, as counted in the footprint, until `stop` or the next start.
        """

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        """Send one request. Raises `EngineDied` if it cannot be delivered. Leaving the context aborts it."""


class WithoutProcess:
    """The moves of an `Engine` without process or weights here: they do nothing. `send` is for its subclass."""

    @property
    def footprint(self) -> Footprint:
        return Footprint(device_awake=0)

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        """Do nothing: connections are made when they are needed."""

    async def sleep(self) -> None:
        """Do nothing: it holds no memory of the device."""

    async def wake(self) -> None:
        """Do nothing."""

    async def stop(self, at_once: bool = False) -> None:
        """Do nothing."""

    async def died(self) -> str:
        """Wait until cancelled: what happened elsewhere shows at a request."""
        await asyncio.Event().wait()
        raise AssertionError("this event is never set")
