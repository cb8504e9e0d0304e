"""Texts in a shape that SQLite can erase: whole pages of their own. Pure.

secure_delete zeroes what is freed, but rows that move between pages when the tree is balanced leave copies behind in
the unused part of a page. Overflow pages never move and are zeroed whole when they are freed. How much of a row stays
on the tree's page is settled by the file format (https://www.sqlite.org/fileformat2.html, section 1.6): of a payload of
LOCAL + n * OVERFLOW bytes exactly LOCAL. Those are zeros here, and the text is what follows.
"""

from __future__ import annotations

PAGE_SIZE = 4096
OVERFLOW = PAGE_SIZE - 4  # a page less the number of the next one
LOCAL = (PAGE_SIZE - 12) * 32 // 255 - 23


def packed(text: str) -> bytes:
    """The value to store in the second of two columns, the first being the row's number."""
    body = text.encode()
    for pages in range(1, len(body) // OVERFLOW + 3):
        size = LOCAL + pages * OVERFLOW - _header_bytes(LOCAL + pages * OVERFLOW)
        if size >= LOCAL + len(body):
            return bytes(LOCAL) + body + bytes(size - LOCAL - len(body))
    raise AssertionError("one page more than the text fills is always enough")


def unpacked(value: bytes) -> str:
    """The text again; it has no zero bytes of its own, JSON writes them as escapes."""
    return value[LOCAL:].rstrip(b"\0").decode()


def _header_bytes(payload: int) -> int:
    """Of a row of (number, bytes): its own length, one byte for the number, the kind and length of the bytes."""
    kind = 2 * payload + 12
    return 2 + next(width for width in (1, 2, 3, 4, 5) if kind < 1 << 7 * width)
