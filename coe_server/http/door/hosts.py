"""The names by which this server may be asked without a key. Pure.

A name elsewhere can be pointed at this machine (DNS rebinding): its pages are then of one origin with what answers
here, and read everything. The name that a browser asked for stands in `Host`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coe_server.config.addresses import HostPort, canonical_host, is_loopback_host

_USUAL = frozenset({"localhost", "127.0.0.1", "::1"})
_LONGEST_QUOTED = 80


@dataclass(frozen=True, slots=True)
class Hosts:
    """Beside this machine's own names and the address that was connected to: `allowed`, in canonical form.

    `any_for_clients` (keys.open): what checks the callers in front of this server checks their names as well.
    """

    allowed: frozenset[str] = frozenset()
    any_for_clients: bool = False

    def unknown(self, asked: Iterable[str], bound: str | None) -> str | None:
        """The first of the `Host` lines that is no name of this server's, for a message; None if there is none.

        `bound`: the address of this side of the connection.
        """
        return next((host[:_LONGEST_QUOTED] for host in asked if host.strip() and not self._has(host, bound)), None)

    def _has(self, host: str, bound: str | None) -> bool:
        asked = HostPort.of(host)
        if asked is None:
            return False
        name = asked.name
        if name in _USUAL or name in self.allowed or is_loopback_host(name):
            return True
        return bound is not None and name == canonical_host(bound)
