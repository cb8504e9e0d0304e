"""A connection's transport that sends the head of an answer together with the first piece of its body.

Each write wakes the process at the other end at once, and on a busy machine the writer waits for it: one write less is
worth a tenth of a millisecond.
"""

from __future__ import annotations

import asyncio
from typing import Any

_HEAD = b"HTTP/1.1 "
_COPIED_BYTES = 64 * 1024  # a longer piece is sent by itself


class JoinedHead(asyncio.Transport):
    """Holds a head until the next write, or until the running step of the event loop has ended."""

    def __init__(self, wire: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._wire = wire
        self._loop = loop
        self._held: bytes = b""

    def write(self, data: Any) -> None:
        """Send these bytes, after the head if one is held."""
        if not self._held and data.startswith(_HEAD):
            self._held = data
            self._loop.call_soon(self._let_go)
            return
        if self._held and len(data) <= _COPIED_BYTES:
            held, self._held = self._held, b""
            self._wire.write(held + data)
            return
        self._let_go()
        self._wire.write(data)

    def close(self) -> None:
        self._let_go()
        self._wire.close()

    def abort(self) -> None:
        self._held = b""
        self._wire.abort()

    def is_closing(self) -> bool:
        return self._wire.is_closing()

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._wire.get_extra_info(name, default)

    def _let_go(self) -> None:
        held, self._held = self._held, b""
        if held and not self._wire.is_closing():
            self._wire.write(held)
