"""A whole server of simulated experts: what is loaded while it serves, and how it ends when it is told to."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from coe_server.routing import artifact as artifacts
from tests.patience import PATIENCE_SECONDS, received_until, until
from tests.ports import free_port
from tests.routing.small_artifact import SIZES, TEXTS, held_out, objective, small_artifact

BETTER = {"code": "coder", "french": "linguist", "maths": "coder", "general": "coder"}


@pytest.fixture
def folder(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    return tmp_path


def settings(port, shutdown_seconds=20, **changes):
    expert = {
        "engine": "simulated",
        "weights_bytes": "1MiB",
        "start_seconds": 0.01,
        "ttft_seconds": 0.01,
        "tokens_per_second": 20,
    }
    return {
        "http": {"port": port, "shutdown_seconds": shutdown_seconds},
        "router": {"artifact": "router"},
        "experts": [{"name": name, **expert} for name in SIZES],
        **changes,
    }


@contextmanager
def serving(folder, **changes):
    port = free_port()
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(settings(port, **changes)))
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("coe"), "serve", config], stdout=output, stderr=output
        )
    try:
        until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process, port, config, log
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def answers(port):
    try:
        return ask(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    finally:
        connection.close()


def version(port):
    return ask(port, "POST", "/v1/route", {"messages": [{"role": "user", "content": TEXTS["code"]}]})[2][
        "router_version"
    ]


def reload(port, expected=200):
    status, _, body = ask(port, "POST", "/admin/reload")
    assert status == expected, body
    return body


def replace_artifact(folder, **changes):
    artifacts.save(small_artifact(**changes), held_out(), None, folder / "router")


def test_what_is_made_to_harm_is_refused_in_a_sentence_and_the_server_goes_on(folder):
    bomb = "".join(f"- &n{level} [{', '.join([f'*n{level - 1}'] * 10)}]\n" for level in range(1, 9))
    with serving(folder) as (_, port, config, _):
        manifest = folder / "router/manifest.json"
        sound, plain = manifest.read_text(), config.read_text()

        def refused():
            told = reload(port, 409)["error"]["message"]
            assert told.startswith("nothing was reloaded: ")
            assert told.isprintable()
            assert len(told) < 1_000
            assert ask(port, "GET", "/healthz")[0] == 200
            return told

        config.write_text(plain + "state_directory:\n- &n0 [x, x, x, x, x, x, x, x, x, x]\n" + bomb)
        assert "after expansion of its aliases" in refused()
        config.write_text(plain)
        (folder / "router/probes.yaml").write_text("probes:\n- &n0 [x, x, x, x, x, x, x, x, x, x]\n" + bomb)
        assert "after expansion of its aliases" in refused()
        (folder / "router/probes.yaml").unlink()
        manifest.write_text(json.dumps({**json.loads(sound), "data_hash": "\x1b[31m"}))
        assert r"\x1b[31m" in refused()
        content = b"{}"
        sums = {**json.loads(sound)["checksums"], "evaluation.json": hashlib.sha256(content).hexdigest()}
        (folder / "router/evaluation.json").write_bytes(content)
        manifest.write_text(json.dumps({**json.loads(sound), "checksums": sums}))
        assert "evaluation.json is not valid at n_prompts" in refused()
        manifest.write_text(sound)
        reload(port)


@contextmanager
def long_stream(port, words=100):
    """A stream that is being answered: twenty words a second."""
    body = json.dumps({"stream": True, "model": "auto", "messages": [{"role": "user", "content": "bonjour " * words}]})
    wire = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    wire.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    )
    try:
        yield wire, received_until(wire, b"\r\n\r\n")
    finally:
        wire.close()


def the_rest(wire):
    return received_until(wire, b"\r\n0\r\n\r\n")


def test_artifact_and_configuration_are_reloaded_while_requests_go_on(folder):
    with serving(folder) as (process, port, config, log):
        first = version(port)
        with long_stream(port) as (wire, head):
            assert head.startswith(b"HTTP/1.1 200")
            replace_artifact(folder, objectives={"quality": objective(BETTER), "cheap": objective(BETTER)})
            told = reload(port)
            assert told["router_version"] == version(port) != first
            assert f"x-coe-router-version: {first}".encode() in head
            assert b"data: [DONE]" in the_rest(wire)

        second = version(port)
        weights = next((folder / "router").glob("*.safetensors"))
        weights.write_bytes(b"damaged")
        refusal = reload(port, 409)["error"]
        assert refusal["code"] == "reload_refused"
        assert refusal["message"].startswith("nothing was reloaded: ")
        assert version(port) == second

        shutil.rmtree(folder / "router")
        assert "nothing was reloaded" in reload(port, 409)["error"]["message"]
        assert version(port) == second
        replace_artifact(folder)

        config.write_text(yaml.safe_dump(settings(port, htpp={})))
        assert "htpp: there is no such key" in reload(port, 409)["error"]["message"]
        config.write_text(yaml.safe_dump(settings(port, scheduling={"queue_limit": 3})))
        assert "scheduling.queue_limit: was 64 and is 3 in the file" in reload(port, 409)["error"]["message"]
        assert version(port) == second  # all or nothing: the sound artifact was not taken either

        config.write_text(yaml.safe_dump(settings(port, aliases={"gpt-4o": "auto:dear"})))
        assert "aliases.gpt-4o: unknown model 'auto:dear'; known: auto, " in reload(port, 409)["error"]["message"]
        config.write_text(yaml.safe_dump(settings(port, aliases={"gpt-4o": "auto"})))
        assert reload(port)["changed"] == ["aliases.gpt-4o"]
        assert ask(port, "GET", "/v1/models/gpt-4o")[0] == 200

        small = settings(port, http={"port": port, "shutdown_seconds": 20, "max_body": "1KiB"})
        config.write_text(yaml.safe_dump(small))
        assert reload(port)["changed"] == ["aliases.gpt-4o", "http.max_body"]
        assert version(port) == first
        assert ask(port, "POST", "/v1/route", {"messages": ["x" * 2000]})[0] == 413

        replace_artifact(folder, objectives={"quality": objective(BETTER), "cheap": objective(BETTER)})
        os.kill(process.pid, signal.SIGHUP)
        until(lambda: version(port) == second)
        config.write_text("- no mapping")
        os.kill(process.pid, signal.SIGHUP)
        until(lambda: "nothing was reloaded" in log.read_text().rpartition("reloaded: router")[2])
        assert version(port) == second
        assert process.poll() is None


def test_a_reload_that_changes_nothing_keeps_what_was_spent(folder):
    with serving(folder, router={"artifact": "router", "objective": "cheap"}) as (_, port, _, _):
        question = {"model": "auto", "messages": [{"role": "user", "content": TEXTS["code"]}]}
        assert ask(port, "POST", "/v1/chat/completions", question)[0] == 200
        spent = ask(port, "POST", "/v1/route", question)[2]["budget"]
        assert spent["mean"] is not None
        untouched = {"added": [], "removed": [], "changed": []}
        experts = {"added": [], "removed": [], "restarted": [], "adjusted": []}
        told = {"router_version": version(port), "changed": [], "experts": experts, "api_keys": untouched}
        assert reload(port) == told
        assert ask(port, "POST", "/v1/route", question)[2]["budget"] == spent


def test_told_to_stop_it_admits_no_request_and_finishes_its_streams(folder):
    with serving(folder) as (process, port, _, log):
        with long_stream(port) as (wire, head):
            assert head.startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            until(lambda: refused(port))
            assert process.poll() is None
            assert b"data: [DONE]" in the_rest(wire)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM, log.read_text()  # it ends as the signal would have
        assert "Traceback" not in log.read_text()
        told = [json.loads(line)["message"] for line in log.read_text().splitlines()]
        assert "stopping: new requests are refused; answers in progress have 20 s" in told[:-1]
        assert told[-1] == "stopped"


def test_a_stream_that_does_not_end_in_time_is_ended_with_a_reason(folder):
    with serving(folder, shutdown_seconds=1) as (process, port, _, log), long_stream(port, words=200) as (wire, _):
        process.send_signal(signal.SIGTERM)
        rest = the_rest(wire)
        assert b"the server is stopping" in rest
        assert b"[DONE]" not in rest
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM, log.read_text()  # it ends as the signal would have


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False
