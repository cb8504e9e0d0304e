"""Runs `coe serve` as a child for as long as a script needs it, and follows what it does. Knows no questions."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

READY_SECONDS = 300.0
STOP_SECONDS = 60
ASK_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_LISTENING = re.compile(r"listening on (https?://\S+)/v1;")


@dataclass
class Service:
    """A running server: where it listens, its process, and every move it has made so far."""

    url: str
    process: subprocess.Popen[bytes]
    moves: list[dict[str, Any]] = field(default_factory=list)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=ASK_SECONDS) as answer:
            return json.load(answer)

    def post(self, path: str) -> Any:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{path}", method="POST"), timeout=ASK_SECONDS
        ) as answer:
            return json.load(answer)


@contextmanager
def running_service(
    config: Path, *options: str, console: Console, ready_seconds: float = READY_SECONDS
) -> Iterator[Service]:
    """`coe serve CONFIG` on a free loopback port, ready; stopped at the end, whatever happens in between."""
    command = [str(Path(sys.executable).with_name("coe")), "serve", str(config), "--port", "0", *options]
    log = Path("artifacts/demo-server.log")
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=_stop_with_parent)  # noqa: PLW1509  no thread runs yet
    deadline = time.monotonic() + ready_seconds
    try:
        service = Service(_address(process, log, deadline), process)
        _until_ready(service, log, console, deadline)
        threading.Thread(target=_follow_moves, args=(service,), daemon=True).start()
        yield service
    finally:
        _stop(process)


def _stop_with_parent() -> None:
    """In the child process, before it runs the server: if the script is killed, the server gets SIGTERM."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _address(process: subprocess.Popen[bytes], log: Path, deadline: float) -> str:
    """Where the server listens, as its log says."""
    while (found := _LISTENING.search(log.read_text(errors="replace"))) is None:
        _go_on_waiting(process, log, deadline)
    return found[1]


def _until_ready(service: Service, log: Path, console: Console, deadline: float) -> None:
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while not _is_ready(service):
            live.update(_experts_table(service))
            _go_on_waiting(service.process, log, deadline)


def _go_on_waiting(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    if process.poll() is not None:
        sys.exit(f"the server did not start; the last lines of {log}:\n{_tail(log)}")
    if time.monotonic() > deadline:
        sys.exit(f"the server was not ready in time; the last lines of {log}:\n{_tail(log)}")
    time.sleep(0.25)


def _is_ready(service: Service) -> bool:
    try:
        return bool(service.get("/readyz")["status"] == "ready")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _experts_table(service: Service) -> Table:
    table = Table.grid(padding=(0, 2))
    try:
        experts = service.get("/admin/experts")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        table.add_row(Spinner("dots", text="the server is starting"))
        return table
    for expert in experts:
        moving = expert["state"] in {"starting", "draining"}
        table.add_row(expert["name"], Spinner("dots", text=expert["state"]) if moving else expert["state"])
    return table


def _follow_moves(service: Service) -> None:
    """Collects the server's move events until the server ends."""
    try:
        with urllib.request.urlopen(f"{service.url}/admin/events", timeout=600) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if event["kind"] == "move":
                        service.moves.append(event)
    except (OSError, ValueError):
        return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
