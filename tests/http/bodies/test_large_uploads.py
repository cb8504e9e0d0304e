"""A form of 300 MB through a whole server: its memory, and a disk without room."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import Reader, reading
from tests.http.bodies.test_uploads import END, FILE_FIRST, PATH, TYPE, field_of, file_of
from tests.patience import PATIENCE_SECONDS, received_until

PIECE = bytes(range(256)) * 4096  # 1 MiB
PIECES = 300
MOST_GROWTH_BYTES = 20 * 10**6


class Ears:
    """A server that keeps of each form only its size and hash."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str]] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                wire, _ = self._listening.accept()
            except OSError:
                return
            with wire:
                head, _, rest = received_until(wire, b"\r\n\r\n").partition(b"\r\n\r\n")
                (length,) = (
                    int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line
                )
                digest, size = hashlib.sha256(rest), len(rest)
                while size < length and (piece := wire.recv(1 << 18)):
                    digest.update(piece)
                    size += len(piece)
                self.heard.append((size, digest.hexdigest()))
                body = b'{"text": "heard"}'
                wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
                wire.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture
def ears() -> Iterator[Ears]:
    one = Ears()
    yield one
    one.close()


@pytest.fixture
def reader(tmp_path: Path, ears: Ears) -> Iterator[Reader]:
    with reading(tmp_path, lambda content, port: content) as one:
        (one.folder / "serve.yaml").write_text(
            f"http: {{port: {one.port}}}\nmemory: {{device: 1GiB, host: 1GiB}}\nvllm: {{platform: cpu}}\nexperts:\n"
            f'  - {{name: ears, engine: remote, base_url: "http://127.0.0.1:{ears.port}/v1", model: large}}\n'
        )
        yield one


def memory_of(pid: int) -> dict[str, int]:
    """Resident and largest resident bytes of a process."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Vm"))
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}


def upload(port: int, parts: list[bytes]) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    length = {"content-length": str(sum(map(len, parts)))}
    connection.request("POST", PATH, iter(parts), {**TYPE, **length}, encode_chunked=False)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


@pytest.mark.parametrize("order", ["model first", "file first"])
def test_a_form_of_300_mb_takes_no_memory_of_the_server(reader: Reader, ears: Ears, order: str) -> None:
    before, after = file_of(b"").split(b"\r\n\r\n", 1)
    file = [before + b"\r\n\r\n", *[PIECE] * PIECES, after]
    model = [field_of("model", "ears")]
    reader.serve("coe serve serve.yaml")
    assert reader.server is not None
    assert upload(reader.port, [*model, file_of(PIECE), END])[0] == 200  # what a first one loads
    Path(f"/proc/{reader.server.pid}/clear_refs").write_text("5")  # the largest resident size begins anew
    resident = memory_of(reader.server.pid)["VmRSS"]
    parts = [*model, *file, END] if order == "model first" else [*file, *model, END]
    assert upload(reader.port, parts) == (200, {"text": "heard"})
    assert memory_of(reader.server.pid)["VmHWM"] - resident < MOST_GROWTH_BYTES
    sent = b"".join(parts).replace(field_of("model", "ears"), field_of("model", "large"))
    assert ears.heard[-1] == (len(sent), hashlib.sha256(sent).hexdigest())


def test_a_disk_without_room_is_told_and_leaves_nothing(reader: Reader, ears: Ears) -> None:
    program = reader.folder / "limited.sh"
    program.write_text("#!/bin/bash\nulimit -f 2000\nexec coe serve serve.yaml\n")  # no file above 2 MB
    program.chmod(0o755)
    reader.serve("./limited.sh")
    large = FILE_FIRST.replace(b"%s", b"ears").replace(PIECE, PIECE * 4)
    status, told = upload(reader.port, [large])
    assert (status, told["error"]["code"]) == (503, "bodies_full")  # type: ignore[index]
    assert "there is no room on disk for this form" in told["error"]["message"]  # type: ignore[index]
    assert upload(reader.port, [field_of("model", "ears") + file_of(PIECE * 4) + END])[0] == 200
    assert len(ears.heard) == 1
