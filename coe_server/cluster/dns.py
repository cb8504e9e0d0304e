"""The directory of the addresses behind one host name, as a headless service of Kubernetes has them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from coe_server.cluster.directory import NodeAddress
from coe_server.config.addresses import in_url

logger = logging.getLogger(__name__)

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port -> addresses


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class DnsDirectory:
    """A `NodeDirectory` that looks a name up every `seconds`. A node is named by its address.

    A look-up that fails, or that finds nothing, changes nothing: name servers fail more often than all nodes at once.
    """

    def __init__(self, host: str, port: int, scheme: str, seconds: float, find: LookUp = look_up) -> None:
        self._host = host
        self._port = port
        self._scheme = scheme
        self._seconds = seconds
        self._find = find
        self._found: tuple[str, ...] = ()
        self._has_failed = False

    def addresses(self) -> tuple[NodeAddress, ...]:
        return tuple(
            NodeAddress(_name(address), f"{self._scheme}://{in_url(address)}:{self._port}") for address in self._found
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Look again and again until cancelled."""
        while True:
            found = await self._look()
            if found and found != self._found:
                self._found = found
                changed()
            await asyncio.sleep(self._seconds)

    async def _look(self) -> tuple[str, ...]:
        try:
            found = tuple(sorted(set(await self._find(self._host, self._port))))
        except OSError as error:
            if not self._has_failed:
                logger.warning("nodes.host: '%s' is not found: %s; the last addresses stay", self._host, error)
            self._has_failed = True
            return ()
        self._has_failed = False
        return found


def _name(address: str) -> str:
    """An address as a name: IPv6 has colons, which names do not have."""
    return address.replace(":", "-").replace("%", "-").lstrip("-") or "node"
