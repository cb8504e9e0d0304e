"""The cost of malicious request bodies for other clients: the time of small requests with and without them.

    python -m benchmarks.nasty_bodies [--seconds 8] [--no-write]

The server runs on the second core with two remote experts, each an nginx that answers at once: one for the small
requests, one for the bodies. The rest shares the first core. The table is written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.document import document
from benchmarks.gateway import GATEWAY_CORE, _nginx, _running, _wait_for
from tests.ports import free_port

MIB = 2**20
MOST = 32 * MIB  # http.max_body
SMALL = json.dumps({"model": "a", "messages": [{"role": "user", "content": "3 km in m?"}], "max_tokens": 4}).encode()
PAUSE_SECONDS = 0.005  # between two small requests
HARM_MS = 20

Nuisance = Callable[[int, Event], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each kind")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory(prefix="coe-nasty-") as made, ExitStack() as stack:
        folder, port = Path(made), free_port()
        experts = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            base_url = f"http://127.0.0.1:{stack.enter_context(_nginx(folder / name))}/v1"
            experts.append({"name": name, "engine": "remote", "base_url": base_url, "model": "upstream"})
        settings = {"http": {"port": port}, "state_directory": str(folder / "state"), "experts": experts}
        file = folder / "serve.yaml"
        file.write_text(json.dumps(settings))
        command = (str(Path(sys.executable).with_name("coe")), "serve", str(file))
        with _running(command, {}, folder / "log", GATEWAY_CORE) as process:
            _wait_for(port, process, folder / "log")
            _waits(port, 1.0, None)
            found = {name: _waits(port, options.seconds, nuisance) for name, nuisance in NUISANCES.items()}
    text = "\n".join((*_head(), *(_line(name, waits) for name, waits in found.items()), "", _verdict(found)))
    print(text)
    if not options.no_write:
        document("nasty bodies", text)


def _waits(port: int, seconds: float, nuisance: Nuisance | None) -> list[float]:
    """Milliseconds of small requests, sent one after the other; sorted."""
    over = multiprocessing.Event()
    beside = multiprocessing.Process(target=nuisance or _nothing, args=(port, over))
    beside.start()
    waits, ends = [], time.perf_counter() + seconds
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.perf_counter() < ends:
        began = time.perf_counter()
        client.request("POST", "/v1/chat/completions", SMALL)
        answer = client.getresponse()
        answer.read()
        waits.append(1e3 * (time.perf_counter() - began))
        if answer.status != 200:
            raise SystemExit(f"a small request was answered with {answer.status}")
        time.sleep(PAUSE_SECONDS)
    client.close()
    over.set()
    beside.join()
    if beside.exitcode != 0:
        raise SystemExit("a body of the other client got an unexpected answer")
    return sorted(waits)


def _nothing(port: int, over: Event) -> None:
    """No other client."""


def _again_and_again(body: bytes, *expected: int) -> Nuisance:
    """Send the same body again as soon as it is answered."""

    def send(port: int, over: Event) -> None:
        while not over.is_set():
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.request("POST", "/v1/chat/completions", body)
            status = client.getresponse().status
            if status not in expected:
                raise SystemExit(f"a nasty body was answered with {status}")
            client.close()

    return send


def _too_large(port: int, over: Event) -> None:
    """Announce a body above the limit; the answer comes before the body."""
    while not over.is_set():
        with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
            wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n{")
            if b" 413 " not in wire.recv(1000):
                raise SystemExit("a body without end was not refused")


def _drips(port: int, over: Event) -> None:
    """A hundred bodies, a byte of each every tenth of a second."""
    wires = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(100)]
    for wire in wires:
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{")
    while not over.wait(0.1):
        for wire in wires:
            wire.sendall(b" ")
    for wire in wires:
        wire.close()


def _filled(value: bytes) -> bytes:
    return (
        b'{"model": "b", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "metadata": ' + value + b"}"
    )


NUISANCES: dict[str, Nuisance | None] = {
    "none": None,
    "a text of 31 MiB": _again_and_again(_filled(b'"' + b"a word " * (31 * MIB // 7) + b'"'), 200),
    "a prompt of 31 MiB": _again_and_again(
        b'{"model": "b", "messages": [{"role": "user", "content": "' + b"a word " * (31 * MIB // 7) + b'"}]}', 200
    ),
    "a text of 31 MiB, every third character escaped": _again_and_again(
        _filled(b'"' + b"a\\n" * (31 * MIB // 3) + b'"'), 200
    ),
    "31 MiB of empty lists": _again_and_again(_filled(b"[" + b"[]," * (31 * MIB // 3) + b"[]]"), 400),
    "the most lists allowed": _again_and_again(_filled(b"[" + b"[]," * 249_000 + b"[]]"), 200),
    "nested 200,000 deep": _again_and_again(_filled(b"[" * 200_000 + b"]" * 200_000), 400),
    "31 MiB that are not UTF-8": _again_and_again(_filled(b'"' + b"x" * (31 * MIB) + b'\xff"'), 400),
    "body too large": _too_large,
    "100 bodies, each a byte every 0.1 s": _drips,
}


def _head() -> list[str]:
    return [
        "## Nasty bodies",
        "",
        "`python -m benchmarks.nasty_bodies`: the time of a small request to a remote expert (nginx) while another",
        "client sends large or malformed bodies to a second expert without a pause. The server has the second core.",
        f"The rest shares the first core with other work (the load average was {os.getloadavg()[0]:.1f}).",
        "",
        "| body of the other client | small requests | p50 ms | p99 ms | longest |",
        "|---|---|---|---|---|",
    ]


def _line(name: str, waits: list[float]) -> str:
    return f"| {name} | {len(waits)} | {_at(waits, 0.5):.1f} | {_at(waits, 0.99):.1f} | {waits[-1]:.0f} |"


def _verdict(found: dict[str, list[float]]) -> str:
    alone, *others = (_at(waits, 0.99) for waits in found.values())
    harmed = [name for name, p99 in zip(list(found)[1:], others, strict=True) if p99 > alone + HARM_MS]
    named = "; ".join(harmed) if harmed else "none"
    return f"Bodies that raise the p99 of small requests by more than {HARM_MS} ms: {named}."


def _at(waits: list[float], share: float) -> float:
    return waits[min(len(waits) - 1, int(share * len(waits)))]


if __name__ == "__main__":
    main()
