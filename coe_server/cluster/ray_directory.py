"""The nodes that `coe cluster up` started on a Ray cluster, as a front sees them. Ray stays in another process."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from coe_server.cluster.directory import NodeAddress
from coe_server.config.addresses import WebAddress
from coe_server.config.types import ServedName
from coe_server.system.child import signal_child

MOST_NODES = 10_000
SILENCE_SECONDS = 60.0  # Ray takes some time to connect
SHORTEST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
_LONGEST_LINE_BYTES = 4 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Address:
    name: ServedName
    url: WebAddress


@dataclass(frozen=True, slots=True)
class _Line:
    nodes: Annotated[tuple[_Address, ...], Field(max_length=MOST_NODES)] = ()
    failed: str | None = None


_LINE = TypeAdapter(_Line)


class ReaderEnded(Exception):
    """The process that reads the directory has ended, or what it says cannot be used; the message says why."""


def read_line(line: bytes) -> tuple[NodeAddress, ...] | None:
    """The addresses in a line of the reader, None if it says that nothing has changed. Raises ReaderEnded."""
    if not line:
        raise ReaderEnded("its reader has ended")
    if not line.strip():
        return None
    try:
        said = _LINE.validate_json(line)
    except ValidationError as error:
        raise ReaderEnded(f"its reader's line is not valid: {error.errors(include_url=False)[0]['msg']}") from error
    if said.failed is not None:
        raise ReaderEnded(said.failed)
    found = tuple(NodeAddress(one.name, one.url.rstrip("/")) for one in said.nodes)
    if len({one.name for one in found}) < len(found):
        raise ReaderEnded("two nodes have the same name")
    return found


def ray_reader(address: str) -> tuple[str, ...]:
    """The command that reads the directory of the Ray cluster at `address` (`auto`: the one this machine is in)."""
    return (sys.executable, "-m", "coe_server.cluster.ray_reader", address)


class RayDirectory:
    """A `NodeDirectory`. While Ray or its directory is away, the last addresses hold; pulses tell which nodes live."""

    def __init__(self, command: Sequence[str], first_pause_seconds: float = SHORTEST_PAUSE_SECONDS) -> None:
        self._command = tuple(command)
        self._first_pause_seconds = first_pause_seconds
        self._addresses: tuple[NodeAddress, ...] = ()

    def addresses(self) -> tuple[NodeAddress, ...]:
        return self._addresses

    async def run(self, changed: Callable[[], None]) -> None:
        pause_seconds, told = self._first_pause_seconds, ""
        while True:
            try:
                async with _running(self._command) as output:
                    while True:
                        async with asyncio.timeout(SILENCE_SECONDS):
                            found = read_line(await output.readline())
                        pause_seconds, told = self._first_pause_seconds, ""
                        self._take(found, changed)
            except (ReaderEnded, TimeoutError, OSError, ValueError) as error:
                reason = str(error) or f"its reader said nothing for {SILENCE_SECONDS:g} s"
                if reason != told:
                    logger.warning("Ray's directory of nodes cannot be read; the last addresses hold: %s", reason)
                told = reason
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _take(self, found: tuple[NodeAddress, ...] | None, changed: Callable[[], None]) -> None:
        if found is not None and found != self._addresses:
            self._addresses = found
            changed()


@asynccontextmanager
async def _running(command: Sequence[str]) -> AsyncIterator[asyncio.StreamReader]:
    """The command's output; it is killed at the end of the context."""
    reader = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # Ray's chatter; a reason comes as the last line
        limit=_LONGEST_LINE_BYTES,
    )
    assert reader.stdout is not None, "its output is a pipe"
    try:
        yield reader.stdout
    finally:
        signal_child(reader, signal.SIGKILL)
        await asyncio.shield(reader.wait())
