"""A server in a thread that sends bytes on its first connection, or closes it, while the connection is idle."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
PATIENCE_SECONDS = 60.0


@dataclass
class Idle:
    """Counts of requests and connections. `may_part` makes the server send the parting bytes and perhaps close."""

    port: int
    requests: int = 0
    connections: int = 0
    may_part: threading.Event = field(default_factory=threading.Event)
    has_parted: threading.Event = field(default_factory=threading.Event)


@contextmanager
def idle_server(parting: bytes, ends: bool) -> Iterator[Idle]:
    """Answers requests whose body is `{}`, one connection after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    idle = Idle(listener.getsockname()[1])
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            idle.connections += 1
            _answer(connection, idle)
            if idle.connections == 1:
                idle.may_part.wait(PATIENCE_SECONDS)
                connection.sendall(parting)
                if ends:
                    connection.close()
                idle.has_parted.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield idle
    finally:
        idle.may_part.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE_SECONDS)
        for connection in held:
            connection.close()


def _answer(connection: socket.socket, idle: Idle) -> None:
    heard = b""
    while not heard.endswith(b"\r\n\r\n{}"):
        piece = connection.recv(65536)
        if not piece:
            return
        heard += piece
    idle.requests += 1
    connection.sendall(ANSWER)
