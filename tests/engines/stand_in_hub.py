"""A Hugging Face hub on loopback: repositories from a mapping, over the HTTP interface that huggingface_hub speaks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub(ThreadingHTTPServer):
    """`sizes: False` is a mirror that lists names alone; `silent` answers nothing until `close`."""

    daemon_threads = True

    def __init__(
        self,
        repositories: Mapping[str, Mapping[str, bytes]],
        token: str = "",
        sizes: bool = True,
        silent: bool = False,
        claimed: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.token, self.sizes, self.silent = repositories, token, sizes, silent
        self.claimed = claimed or {}  # file -> size in the list, in place of its real one
        self.asked: list[str] = []
        self.closed = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if hub.silent:
            hub.closed.wait()
            return
        listed = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        files = hub.repositories.get(name)
        if files is None or (hub.token and self.headers.get("authorization") != f"Bearer {hub.token}"):
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo" if files else "RepoNotFound"})
        elif listed and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            self._send(200, json.dumps(tree).encode())
        elif listed:
            self._send(200, json.dumps(self._info(name, files)).encode())
        elif rest[:1] == ["resolve"] and (content := files.get("/".join(rest[2:]))) is not None:
            self._file(content)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _info(self, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": file} for file in files]
        if self.server.sizes:
            for one in siblings:
                one["size"] = self.server.claimed.get(one["rfilename"], len(files[one["rfilename"]]))
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}

    def _file(self, content: bytes) -> None:
        start, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        if wanted := self.headers.get("range", ""):
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        etag = hashlib.sha256(content).hexdigest()
        self._send(status, content[start:], headers | {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving_hub(repositories: Mapping[str, Mapping[str, bytes]], **more: Any) -> Iterator[StandInHub]:
    hub = StandInHub(repositories, **more)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
        thread.join()
