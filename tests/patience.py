"""How tests wait: for an event, with a limit that even a busy machine does not reach."""

import re
import time

PATIENCE_SECONDS = 120.0  # a slow machine must not fail a test


def until(condition, seconds=PATIENCE_SECONDS):
    """Return once the condition is true; for conditions without an event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not true within {seconds:g} s"
        time.sleep(0.01)


def received_until(wire, mark):
    """The bytes from a socket up to the piece with the mark; one `recv` may return less than that, or more."""
    raw = b""
    while mark not in raw:
        piece = wire.recv(65536)
        assert piece, f"the connection ended before {mark!r}: {raw!r}"
        raw += piece
    return raw


def received_answer(wire):
    """One whole answer with a content-length, from a connection that may stay open."""
    raw = received_until(wire, b"\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    length = int(re.search(rb"\ncontent-length: (\d+)", head.lower())[1])
    while len(body) < length:
        piece = wire.recv(65536)
        assert piece, f"the connection ended within an answer: {raw!r}"
        raw, body = raw + piece, body + piece
    return raw


def received(wire):
    """All bytes from a socket until its other end closes it."""
    raw = b""
    try:
        while piece := wire.recv(65536):
            raw += piece
    except ConnectionResetError:  # it was closed while we were still sending
        pass
    return raw
