"""What a front and a node cost over one server: the same expert, the same upstream, in turns within one run.

    python -m benchmarks.cluster                       # writes to docs/benchmarks.md
    python -m benchmarks.cluster --requests 50 --no-write
    chrt -r 5 python -m benchmarks.cluster             # on a busy machine, as root: before all other work

Three servers as processes: one alone, a node, and a front over that node. Their expert is `engine: remote`, and its
upstream runs in this process, which is the client, too. So the delay of a stream's chunk is read from one clock: the
upstream writes the time into the chunk. What differs between the two paths is the front. Goal: p50 of a request at most
0.6 ms more, of a chunk at most 0.2 ms more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import yaml

from benchmarks.document import document
from tests.ports import free_port

KEY_VARIABLE, KEY = "COE_NODE_KEY", "benchmark-node-key"
GOAL_MS, GOAL_CHUNK_MS = 0.6, 0.2
CHUNKS, PACE_SECONDS = 40, 0.01
START_SECONDS = 120.0
_SENT = re.compile(rb'"content": "(\d+\.\d+)"')


@dataclass(slots=True)
class Way:
    """One way to the upstream: what a request and a chunk took, in milliseconds."""

    name: str
    port: int
    requests: list[float] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each way, one at a time")
    parser.add_argument("--streams", type=int, default=20, help=f"of each way, with {CHUNKS} chunks")
    parser.add_argument("--no-write", action="store_true")
    asked = parser.parse_args(arguments)
    text = asyncio.run(measured(asked.requests, asked.streams))
    print(text)
    if not asked.no_write:
        document("cluster", text)


async def measured(requests: int, streams: int) -> str:
    """All of it: start, measure in turns, end."""
    upstream = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with upstream:
        with ExitStack() as held:
            ways = await asyncio.to_thread(_started, held, upstream.sockets[0].getsockname()[1])
            for way in ways * 20:
                await _request(way.port)
            for number in range(requests):
                for way in ways if number % 2 else reversed(ways):
                    way.requests.append(await _request(way.port))
            for _ in range(streams):
                for way in ways:
                    way.chunks += await _stream(way.port)
            return _report(*ways)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The upstream: one fixed answer, or a stream that has the time in each chunk."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
            body = json.loads(await reader.readexactly(length))
            await (_pieces(writer) if body.get("stream") else _whole(writer))
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the client has left, or we do
        writer.close()


async def _whole(writer: asyncio.StreamWriter) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
    body = json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "up", "choices": [choice]}
    ).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def _pieces(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(CHUNKS):
        await asyncio.sleep(PACE_SECONDS)
        choice = {"index": 0, "delta": {"content": f"{time.perf_counter():.6f}"}, "finish_reason": None}
        event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice]}
        piece = f"data: {json.dumps(event)}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    done = b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
    await writer.drain()


_open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}


async def _sent(port: int, stream: bool) -> asyncio.StreamReader:
    """The reader of the answer's head; one connection for each server."""
    if port not in _open:
        _open[port] = await asyncio.open_connection("127.0.0.1", port)
    reader, writer = _open[port]
    body = json.dumps(
        {"model": "hosted", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    ).encode()
    lines = (
        *("POST /v1/chat/completions HTTP/1.1", "host: localhost"),
        *("content-type: application/json", f"content-length: {len(body)}"),
    )
    writer.write("\r\n".join((*lines, "", "")).encode() + body)
    return reader


async def _request(port: int) -> float:
    """Milliseconds until the whole answer was there."""
    begun = time.perf_counter()
    reader = await _sent(port, stream=False)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n", 1)[0], head
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]
    return 1000 * (time.perf_counter() - begun)


async def _stream(port: int) -> list[float]:
    """Milliseconds from the upstream's write of each chunk until it was here."""
    reader = await _sent(port, stream=True)
    found: list[float] = []
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        assert line, "the stream ended early"
        if (sent := _SENT.search(line)) is not None:
            found.append(1000 * (time.perf_counter() - float(sent[1])))
    await reader.readuntil(b"0\r\n\r\n")
    assert len(found) == CHUNKS, len(found)
    return found


def _started(held: ExitStack, upstream: int) -> tuple[Way, Way]:
    """One server alone; and a front over a node."""
    folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
    expert = {"name": "hosted", "engine": "remote", "base_url": f"http://127.0.0.1:{upstream}/v1", "model": "up"}
    alone = held.enter_context(_served(folder, "alone", {"experts": [expert]}))
    node = {"role": "node", "keys": {"node_key_env": KEY_VARIABLE}, "experts": [expert]}
    behind = held.enter_context(_served(folder, "node", node))
    nodes = [{"name": "node", "address": f"http://127.0.0.1:{behind}", "api_key_env": KEY_VARIABLE}]
    front = held.enter_context(_served(folder, "front", {"experts": [], "nodes": nodes}))
    _until_served(front, "/v1/models", b'"hosted"')
    return Way("one server", alone), Way("front and node", front)


@contextmanager
def _served(folder: Path, name: str, settings: dict[str, Any]) -> Iterator[int]:
    port = free_port()
    file = folder / f"{name}.yaml"
    common = {"http": {"port": port}, "state_directory": f"state-{name}", "log": {"decisions": False, "format": "json"}}
    file.write_text(yaml.safe_dump({**common, **settings}))
    with (folder / f"{name}.log").open("wb") as log:
        words = [sys.executable, "-m", "coe_server", "serve", str(file)]
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, KEY_VARIABLE: KEY})
    try:
        _until_served(port, "/readyz", b"ready")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_served(port: int, path: str, mark: bytes) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                if mark in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"port {port} did not answer {path} as it should within {START_SECONDS:g} s")


def _report(alone: Way, through: Way) -> str:
    added, added_chunk = _p50(through.requests) - _p50(alone.requests), _p50(through.chunks) - _p50(alone.chunks)
    load = os.getloadavg()[0]
    rows = "\n".join(_row(way) for way in (alone, through))
    return f"""## Several machines: a front and a node over one server

`python -m benchmarks.cluster --requests {len(alone.requests)} --streams {len(alone.chunks) // CHUNKS}`.
One request at a time, the two ways in turns; the upstream and the client are one process.
A chunk: from the upstream's write until the client had it. All of it on one machine, so the network costs nothing.

Python {platform.python_version()}, {os.cpu_count()} cores shared with other work
(the load average was {load:.1f}).{_of_load(load)}

| | request p50 ms | p99 | chunk p50 ms | p99 |
|---|---|---|---|---|
{rows}

- Added to a request at p50: {added:.2f} ms, goal at most {GOAL_MS:g}: {_judged(added, GOAL_MS)}.
- Added to a chunk at p50: {added_chunk:.2f} ms, goal at most {GOAL_CHUNK_MS:g}: {_judged(added_chunk, GOAL_CHUNK_MS)}.
"""


def _of_load(load: float) -> str:
    if load <= (os.cpu_count() or 1):
        return ""
    if os.sched_getscheduler(0) in {os.SCHED_RR, os.SCHED_FIFO}:
        return " All processes of this benchmark ran before the other work (`chrt -r 5`)."
    return " More was to do than there are cores: these figures say little, and are to be taken again."


def _row(way: Way) -> str:
    cells = (_p50(way.requests), _p99(way.requests), _p50(way.chunks), _p99(way.chunks))
    return f"| {way.name} | " + " | ".join(f"{value:.2f}" for value in cells) + " |"


def _judged(figure: float, goal: float) -> str:
    return "met" if figure <= goal else "missed"


def _p50(values: Sequence[float]) -> float:
    return median(values)


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
