"""Takes the address to listen at before anything else is begun; says in a sentence why it cannot be had.

That is no mistake in the configuration: who holds the port may leave it, and trying again is worth while.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from coe_server.config.addresses import host_and_port
from coe_server.errors import CoeError

_NOT_OURS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NAME_OR_ADDRESS = "http.host is an address or a name of this machine: 127.0.0.1, or 0.0.0.0 for all of its addresses"


def taken_address(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, not listening yet. Raises CoeError with the reason and a way out."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no name"
        raise _cannot_listen(host, port, reason, _NAME_OR_ADDRESS) from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            with suppress(_NotOurs):
                sockets.append(_bound(family, address))
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    except OSError as error:
        for one in sockets:
            one.close()
        way_out = _NAME_OR_ADDRESS if error.errno in _NOT_OURS else "give another port (http.port or --port)"
        raise _cannot_listen(host, port, error.strerror or str(error), way_out) from error
    return sockets


class _NotOurs(Exception):
    """An address that `host` has and this machine has not, ::1 of localhost say."""


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    try:
        one = socket.socket(family, socket.SOCK_STREAM)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
        except BaseException:
            one.close()
            raise
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise _NotOurs from error
        raise
    return one


def _cannot_listen(host: str, port: int, reason: str, way_out: str) -> CoeError:
    return CoeError(f"cannot listen on {host_and_port(host, port)}: {reason[0].lower()}{reason[1:]}; {way_out}")
