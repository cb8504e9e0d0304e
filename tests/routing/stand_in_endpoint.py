"""An embeddings endpoint in a thread: words hashed into a few dimensions, and faults on request."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np

DIMENSIONS = 24


def embedding(text: str) -> np.ndarray:
    """The sum of one random vector for each word, so that texts with common words are near each other."""
    words = text.lower().split() or [""]
    return np.sum([np.random.default_rng(zlib.crc32(w.encode())).normal(size=DIMENSIONS) for w in words], axis=0)


@dataclass
class StandIn:
    """`faults` are the first answers, as (status, body); `texts` are all texts received."""

    base_url: str
    faults: list[tuple[int, bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of each fault
    texts: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    agents: list[str | None] = field(default_factory=list)


@contextmanager
def endpoint() -> Iterator[StandIn]:
    """Serves `POST /v1/embeddings` until the block ends."""
    stand_in = StandIn("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client may disconnect when it has read enough
                super().handle()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.keys.add(self.headers.get("Authorization"))
            if stand_in.faults:
                self._answer(*stand_in.faults.pop(0), **stand_in.headers)
                return
            stand_in.paths.append(self.path)
            stand_in.agents.append(self.headers.get("User-Agent"))
            assert urlsplit(self.path).path == "/v1/embeddings"
            assert body["model"] == "words"
            stand_in.texts += body["input"]
            stand_in.batches.append(len(body["input"]))
            entries = [
                {"object": "embedding", "index": at, "embedding": embedding(text).tolist()}
                for at, text in enumerate(body["input"])
            ]
            self._answer(200, json.dumps({"data": entries[::-1]}).encode())

        def _answer(self, status: int, content: bytes, **headers: str) -> None:
            with suppress(ConnectionError):  # a client may disconnect after another of its requests failed
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        stand_in.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
