"""Nodes and fronts, whole servers in threads or as processes; and a relay between them that drops what it is told."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import yaml

from coe_server.app import build_server
from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, NodeSnapshot
from coe_server.config.environment import Environment
from coe_server.config.schema import ServerConfig, load_config
from tests.patience import PATIENCE_SECONDS, until

KEY = "a-node-key"
ENVIRONMENT = {"COE_NODE_KEY": KEY}


def expert(name, **settings):
    """A simulated expert that is up at once."""
    fast = {"start_seconds": 0, "wake_seconds": 0, "sleep_seconds": 0, "ttft_seconds": 0, "tokens_per_second": 1000}
    return {"name": name, "engine": "simulated", "weights_bytes": "1GiB", **fast, **settings}


def node_settings(experts, **settings):
    memory = {"device": "8GiB", "host": "16GiB"}
    keys = {"node_key_env": "COE_NODE_KEY"}
    return {"role": "node", "keys": keys, "memory": memory, "log": {"decisions": False}, "experts": experts, **settings}


def front_settings(addresses, **settings):
    """`addresses`: node -> address."""
    nodes = [{"name": name, "address": url, "api_key_env": "COE_NODE_KEY"} for name, url in addresses.items()]
    return {"log": {"decisions": False}, "experts": [], "nodes": nodes, **settings}


@dataclass
class Server:
    """One that answers at `port`."""

    port: int
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, patience_seconds=PATIENCE_SECONDS, **headers):
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience_seconds)
        try:
            raw = None if body is None else json.dumps(body)
            connection.request(method, path, raw, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            said = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, said, answer.read()
        finally:
            connection.close()

    def json(self, path):
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def chat(self, model, text="hello there", **fields):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        status, headers, raw = self.ask("POST", "/v1/chat/completions", body, content_type="application/json")
        return status, headers, raw

    def nodes(self):
        return {one["name"]: one for one in self.json("/admin/nodes")}

    def until_usable(self, *names, patience_seconds=PATIENCE_SECONDS):
        until(lambda: all(self.nodes()[name]["usable"] for name in names), patience_seconds)

    def until_unusable(self, name):
        until(lambda: not self.nodes()[name]["usable"])


@contextmanager
def in_thread(settings, port=0, environment=ENVIRONMENT):
    """A whole server in this process. A reload reads `settings` again, which the caller may have changed."""
    with tempfile.TemporaryDirectory() as state:

        def read():
            base = {"http": {"shutdown_seconds": 1}, "state_directory": state}
            config = ServerConfig.model_validate({**base, **settings})
            config._environment = Environment(dict(environment))
            return config

        with running(read, port) as server:
            yield server


@contextmanager
def running(read, port=0):
    """A whole server in this process, with the configuration that `read` returns, also for a reload."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        server = build_server(read(), read)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield Server(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "the server did not stop"


@contextmanager
def recording_node(log=b""):
    """A node that is none: it tells of the expert `coder`, answers, and gives `log`. Its URL, and the headers of each
    request."""
    seen, has_ended = [], threading.Event()

    class Node(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if "/log" in self.path:
                self.send_response(200)
                self.send_header("content-length", str(len(log)))
                self.end_headers()
                self.wfile.write(log)
                return
            snapshot = NodeSnapshot("left", PROTOCOL, 0, {"coder": ExpertOnNode("coder", "device")})
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(b"event: snapshot\ndata: " + json.dumps(snapshot.as_json()).encode() + b"\n\n")
                while not has_ended.wait(0.05):
                    self.wfile.write(b"event: pulse\ndata: {}\n\n")

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            seen.append({name.lower(): value for name, value in self.headers.items()})
            message = {"role": "assistant", "content": "Yes."}
            body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as node:
        threading.Thread(target=node.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{node.server_port}", seen
        finally:
            has_ended.set()
            node.shutdown()


@contextmanager
def cluster(nodes, **front):
    """A front over nodes in threads: name -> experts, or settings. Yields the front and the nodes by name."""
    with ExitStack() as held:
        there = {}
        for name, one in nodes.items():
            settings = one if isinstance(one, dict) else node_settings(one)
            there[name] = held.enter_context(in_thread(settings))
        urls = {name: server.url for name, server in there.items()}
        gate = held.enter_context(in_thread(front_settings(urls, **front)))
        gate.until_usable(*there)
        yield gate, there


@contextmanager
def as_process(folder, name, settings, port):
    """`coe serve` as a process, killed at the end whatever its state."""
    file = folder / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump({**settings, "http": {"port": port}, "state_directory": str(folder / f"state-{name}")})
    )
    load_config(file, Environment(dict(ENVIRONMENT)))
    with (folder / f"{name}.log").open("ab") as log:
        words = [sys.executable, "-m", "coe_server", "serve", file]
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
    try:
        yield Server(port, process)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(PATIENCE_SECONDS)


class Relay:
    """Passes bytes to and from `port`, until it is told to swallow them or to cut every connection."""

    def __init__(self, port):
        self._to = port
        self._passes = threading.Event()
        self._passes.set()
        self._wires = set()
        self._is_open = True
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def swallow(self):
        """From now on nothing comes through, and nothing is closed either."""
        self._passes.clear()

    def pass_on(self):
        self._passes.set()

    def cut(self):
        """Close every connection now."""
        for wire in tuple(self._wires):
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._is_open = False
        self._passes.set()
        self._listening.close()
        self.cut()

    def _accept(self):
        while self._is_open:
            try:
                here, _ = self._listening.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                continue
            self._wires |= {here, there}
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source, target):
        with suppress(OSError):
            while piece := source.recv(65536):
                self._passes.wait()
                target.sendall(piece)
        for wire in (source, target):
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(port):
    made = Relay(port)
    try:
        yield made
    finally:
        made.close()
