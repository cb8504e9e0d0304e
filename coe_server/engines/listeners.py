"""Listening TCP sockets of this machine and their owners, from /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from coe_server.engines.memory import process_tree

_PROC = Path("/proc")
_LISTENS = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket; `inode` is its identity, as the descriptors of its process show it."""

    address: str
    port: int
    inode: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        address = ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def listeners(proc: Path = _PROC) -> list[Listener]:
    """All listeners of this network namespace. Lines: `sl local_address rem_address st ... inode` (proc(5))."""
    found: list[Listener] = []
    for table in ("net/tcp", "net/tcp6"):
        with suppress(OSError):  # a kernel without IPv6
            for line in (proc / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS:
                    address, _, port = fields[1].partition(":")
                    found.append(Listener(_address(address), int(port, 16), int(fields[9])))
    return found


def by_owner(root: int) -> tuple[list[Listener], list[Listener]]:
    """The listeners of a process and its descendants, and all others."""
    found = listeners()  # first, so that a socket opened later is in neither list
    own = {inode for pid in process_tree(root) for inode in _socket_inodes(pid)}
    return [one for one in found if one.inode in own], [one for one in found if one.inode not in own]


def free_port() -> int:
    """A free port of the loopback address; another process may take it at any time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _address(text: str) -> str:
    """Decode the kernel's address: 32-bit words in machine order, which is little-endian on supported machines."""
    words = bytes.fromhex(text)
    raw = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _socket_inodes(pid: int) -> Iterator[int]:
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return  # it has just ended
    for descriptor in descriptors:
        with suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                yield int(target[8:-1])
