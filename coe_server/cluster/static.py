"""The directory of nodes whose addresses stand in the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from coe_server.cluster.directory import NodeAddress


class StaticDirectory:
    """A `NodeDirectory` that never changes."""

    def __init__(self, addresses: Sequence[NodeAddress]) -> None:
        self._addresses = tuple(addresses)

    def addresses(self) -> tuple[NodeAddress, ...]:
        return self._addresses

    async def run(self, changed: Callable[[], None]) -> None:
        """Nothing to follow."""
        del changed
        await asyncio.Event().wait()
