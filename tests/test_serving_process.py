"""`coe serve` as a process: over IPv6, told to stop in the middle of bodies, and out of open files."""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

COE = Path(sys.executable).with_name("coe")
EXPERT = {"name": "a", "engine": "simulated", "weights_bytes": "1GiB", "start_seconds": 0, "preload": "device"}


@contextmanager
def serving(folder, host="127.0.0.1", more_experts=(), **http):
    """The process, its address, its configuration and its log; ended at the end."""
    port = free_port(host)
    config, log = folder / "serve.yaml", folder / "server.log"
    settings = {"memory": {"device": "2GiB", "host": "2GiB"}, "experts": [EXPERT, *more_experts]}
    config.write_text(yaml.safe_dump({**settings, "http": {"host": host, "port": port, **http}}))
    with log.open("wb") as output:
        process = subprocess.Popen([COE, "serve", config], stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or "200 OK" in asked((host, port), "GET", "/readyz"))
        assert process.poll() is None, log.read_text()
        yield process, (host, port), config, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_SECONDS)


def coe(*words):
    return subprocess.run([COE, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def asked(address, method, path):
    """All that comes back; nothing where nothing answers."""
    try:
        with closing(socket.create_connection(address, timeout=PATIENCE_SECONDS)) as wire:
            wire.sendall(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            return everything(wire)
    except ConnectionError:
        return ""


def everything(wire):
    raw = b""
    while piece := wire.recv(65536):
        raw += piece
    return raw.decode()


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_an_ipv6_address_has_brackets_wherever_it_is_written(tmp_path):
    with serving(tmp_path, "::1") as (_, (_, port), config, log):
        assert f"listening on http://[::1]:{port}/v1;" in log.read_text()
        shown = coe("experts", config)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.splitlines()[1].split()[0] == "a"
        again = coe("serve", config)
        assert again.returncode == 1
        assert f"cannot listen on [::1]:{port}: address already in use" in again.stderr
    gone = coe("experts", config)
    assert f"no server answers at http://[::1]:{port} (" in gone.stderr


HALF = {
    "with a length": b"content-length: 500\r\n\r\n{",
    "without a first byte": b"content-length: 500\r\n\r\n",
    "chunked": b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    "compressed": b"content-length: 500\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b",
    "large": b"content-length: 65000\r\n\r\n{" + b" " * 60_000,
    "beside an offer": b"connection: Upgrade\r\nupgrade: h2c\r\ncontent-length: 500\r\n\r\n{",
}
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/tokenize", "/v1/route", "/v1/feedback")


def test_a_server_that_stops_in_the_middle_of_bodies_says_so_in_our_shape(tmp_path):
    with serving(tmp_path, shutdown_seconds=1) as (process, address, _, log), ExitStack() as open_:
        wires = {}
        for path in PATHS:
            for kind, half in HALF.items():
                wire = open_.enter_context(closing(socket.create_connection(address, timeout=PATIENCE_SECONDS)))
                wire.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n".encode() + half)
                wires[path, kind] = wire
        assert "200 OK" in asked(address, "GET", "/healthz")  # what came before is read by now
        process.send_signal(signal.SIGTERM)
        for (path, kind), wire in wires.items():
            head, _, body = everything(wire).partition("\r\n\r\n")
            assert head.startswith("HTTP/1.1 503 "), (path, kind, head)
            assert "retry-after" in head
            error = json.loads(body)["error"]
            assert error["message"] == "the server is stopping"
            assert error["code"] == "expert_unavailable"
            assert path != "/v1/messages" or error["type"] == "overloaded_error"
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
    assert "Traceback" not in log.read_text()


def test_a_program_and_a_model_that_are_missing_are_warned_of_at_the_start(tmp_path):
    missing = {"name": "b", "engine": "command", "command": "./none -m {model} --port {port}", "model": "./none.gguf"}
    with serving(tmp_path, more_experts=[missing]) as (_, _, _, log):
        told = [line["message"] for line in map(json.loads, log.read_text().splitlines())]
    assert f"experts.b.command: there is no program '{tmp_path}/none' on PATH" in told
    assert f"experts.b.model: there is no file or folder '{tmp_path}/none.gguf'" in told


def open_files_of(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        pytest.skip("only root can look into a server, and count the files that it has open")


class Connections:
    """Connections to a server that closes some of them."""

    def __init__(self, address):
        self._address = address
        self._open = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self._open:
            one.close()

    def keep(self, number):
        """Open as many as are missing in this number."""
        for one in [one for one in self._open if is_closed_by_peer(one)]:
            one.close()
            self._open.remove(one)
        while len(self._open) < number:
            self._open.append(socket.create_connection(self._address, timeout=PATIENCE_SECONDS))


def is_closed_by_peer(connection):
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


def test_at_the_limit_of_open_files_one_line_says_so_and_what_to_do(tmp_path):
    with serving(tmp_path) as (process, address, _, log):
        hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1]
        limit = open_files_of(process.pid) + 5
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, hard))
        with Connections(address) as connections:

            def is_told():
                connections.keep(limit)  # it may close files of its start at any time, and take one more
                return "limit of open files" in log.read_text()

            until(is_told)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        until(lambda: "200 OK" in asked(address, "GET", "/healthz"))
    told = [line for line in map(json.loads, log.read_text().splitlines()) if "open files" in line["message"]]
    assert len(told) == 1
    assert told[0]["level"] == "error"
    assert f"({limit} for this process" in told[0]["message"]
    assert "ulimit -n" in told[0]["message"]
