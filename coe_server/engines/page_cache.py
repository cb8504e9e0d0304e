"""Reads experts' weight files, so that the kernel has them in memory when their engines start. Decides nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_CHUNK_BYTES = 4 * 2**20


class PageCache:
    """`files`: expert -> its weight files as they are now. `free_bytes`: memory the machine could give away."""

    def __init__(self, files: Mapping[str, Callable[[], Sequence[Path]]], free_bytes: Callable[[], int]) -> None:
        self._files = files
        self._free_bytes = free_bytes

    async def read(self, expert: str, kept_bytes: int) -> int:
        """Read as much of the expert's files as fits beside `kept_bytes`; the bytes read.

        Cancelling ends it within a chunk. Raises OSError for a file that cannot be read.
        """
        if expert not in self._files:
            return 0
        stop = threading.Event()
        reading = asyncio.create_task(
            asyncio.to_thread(_read, self._files[expert], lambda: self._free_bytes() - kept_bytes, stop)
        )
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({reading})
            raise


def _read(files: Callable[[], Sequence[Path]], room_bytes: Callable[[], int], stop: threading.Event) -> int:
    """In order, chunk by chunk: a file that is half in memory is half as slow to load."""
    chunk, total = memoryview(bytearray(_CHUNK_BYTES)), 0
    for file in files():
        with file.open("rb", buffering=0) as source:
            size = 1
            while size:
                if stop.is_set() or total + _CHUNK_BYTES > room_bytes():
                    return total
                total += (size := source.readinto(chunk))
    return total
